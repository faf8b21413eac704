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
// links where the file system allows it. INVALID_ARGUMENT when `data_dir` is no data directory or
// `target` is not empty. A backup that fails leaves nothing; one that is killed has no catalogue.db
// and cannot be restored, and the next one to the same place removes it. What root copies gets the
// owner of the catalogue that it copies, where root may set owners. UNAVAILABLE while a server, or
// another copy, uses `target`.
absl::StatusOr<CopiedData> Backup(const std::string& data_dir, const std::string& target);

// Makes a data directory of a backup, likewise; `data_dir` must be missing or empty. DATA_LOSS when
// a file or the catalogue is damaged; UNAVAILABLE also where the owner cannot be set. No server
// starts on a directory whose restore was not finished.
absl::StatusOr<CopiedData> Restore(const std::string& backup, const std::string& data_dir);

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_BACKUP_H_
