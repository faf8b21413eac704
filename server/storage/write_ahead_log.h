// Detects damage in SQLite's write-ahead log.
#ifndef NNI_COMPRESSION_SERVER_STORAGE_WRITE_AHEAD_LOG_H_
#define NNI_COMPRESSION_SERVER_STORAGE_WRITE_AHEAD_LOG_H_

#include <string>

namespace nni_compression::server {

// The number of transactions in the log at `path` that SQLite will silently drop, because they or
// frames before them are damaged: it treats the first frame with a wrong checksum as the end. A
// killed process leaves none; a power failure may. A truncated log cannot be told from a shorter
// one. 0 for a file that is missing or unreadable. Called before SQLite opens the database.
int LostTransactions(const std::string& path);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_STORAGE_WRITE_AHEAD_LOG_H_
