// The directory that a server keeps its sessions in: is it fit, and is it ours?
#ifndef NNI_COMPRESSION_SERVER_STORAGE_DATA_DIRECTORY_H_
#define NNI_COMPRESSION_SERVER_STORAGE_DATA_DIRECTORY_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/platform/file_descriptor.h"

namespace nni_compression::server {

// FAILED_PRECONDITION for a file system, by its number as statfs(2) has it, that lies on other
// machines: neither locks nor SQLite's write-ahead log can be trusted there.
absl::Status CheckFileSystem(const std::string& path, int64_t type);

// A directory that this process alone writes to, for as long as the object lives.
class DataDirectory {
 public:
  // Creates the directory, readable for its owner only, where it is missing, and takes its locks:
  // of the file `lock`, which keeps other servers out, and of the directory itself, which keeps out
  // `compressionctl restore`. Waits up to `lock_wait` for others to release them;
  // FAILED_PRECONDITION when they do not, or when a restore was begun and not finished. Blocks.
  static absl::StatusOr<DataDirectory> Open(const std::string& path, absl::Duration lock_wait);

  const std::string& path() const { return path_; }

 private:
  DataDirectory(std::string path, FileDescriptor lock, FileDescriptor directory)
      : path_(std::move(path)), lock_(std::move(lock)), directory_(std::move(directory)) {}

  std::string path_;
  FileDescriptor lock_;
  FileDescriptor directory_;
};

// RESOURCE_EXHAUSTED where there is no room or nothing may be written, INTERNAL otherwise. Reads
// errno.
absl::Status FileError(const std::string& what, const std::string& path);

// Makes the directory where it is missing.
absl::Status MakeDirectory(const std::string& path);

// Makes what was created, renamed or removed in the directory survive the machine.
absl::Status SyncDirectory(const std::string& path);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_STORAGE_DATA_DIRECTORY_H_
