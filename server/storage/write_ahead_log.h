// SQLite's write-ahead log as a file: has it lost anything?
#ifndef NNI_COMPRESSION_SERVER_STORAGE_WRITE_AHEAD_LOG_H_
#define NNI_COMPRESSION_SERVER_STORAGE_WRITE_AHEAD_LOG_H_

#include <string>

namespace nni_compression::server {

// How many transactions are in the log at `path` that SQLite will drop without a word, because
// something before them, or of them, is damaged: it reads up to the first frame whose checksum is
// wrong and takes that for the end. A process that was killed leaves none; a machine that lost its
// power may. A log that was cut off cannot be told from a shorter one. 0 for a file that is missing
// or cannot be read. Before SQLite opens the database.
int LostTransactions(const std::string& path);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_STORAGE_WRITE_AHEAD_LOG_H_
