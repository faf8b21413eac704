// Copies of a server's data directory. What a directory holds is drawn in
// server/storage/disk_storage.h; all that matters here is that it is a SQLite database, and files
// under records/ that never change and are named by their SHA-256.
#ifndef NNI_COMPRESSION_CLIENT_CLI_BACKUP_H_
#define NNI_COMPRESSION_CLIENT_CLI_BACKUP_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace nni_compression::cli {

struct CopiedData {
  int64_t files = 0;
  int64_t bytes = 0;
};

// Copies the directory as it is at one moment, while a server may be using it. Files are hard
// links where the file system allows it. INVALID_ARGUMENT when `data_dir` is not a data directory
// or `target` is not empty. A failed backup leaves no files. A killed backup has no catalogue.db
// and cannot be restored; the next backup to the same place removes it. Files that root copies get
// the owner of the original catalogue, where root may set owners. UNAVAILABLE while a server, or
// another copy, uses `target`.
absl::StatusOr<CopiedData> Backup(const std::string& data_dir, const std::string& target);

// Restores a backup into a data directory, which must be missing or empty. Errors are those of
// Backup; in addition, DATA_LOSS when a file or the catalogue is damaged and UNAVAILABLE when the
// owner cannot be set. No server starts on a directory with an unfinished restore.
absl::StatusOr<CopiedData> Restore(const std::string& backup, const std::string& data_dir);

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_BACKUP_H_
