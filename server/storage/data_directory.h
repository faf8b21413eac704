// The data directory of a server: checks of its file system, and the locks on it.
#ifndef NNI_COMPRESSION_SERVER_STORAGE_DATA_DIRECTORY_H_
#define NNI_COMPRESSION_SERVER_STORAGE_DATA_DIRECTORY_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/platform/file_descriptor.h"

namespace nni_compression::server {

// FAILED_PRECONDITION for a network file system, on which neither locks nor SQLite's write-ahead
// log are reliable. `type` is that of statfs(2).
absl::Status CheckFileSystem(const std::string& path, int64_t type);

// A directory that this process alone writes to, for as long as the object lives.
class DataDirectory {
 public:
  // Creates the directory, readable only for its owner, if it is missing, and takes two locks: on
  // the file `lock`, which excludes other servers, and on the directory itself, which excludes
  // `compressionctl restore`. Waits up to `lock_wait` for other processes to release them;
  // FAILED_PRECONDITION when they do not, or when a restore was not finished. Blocks.
  static absl::StatusOr<DataDirectory> Open(const std::string& path, absl::Duration lock_wait);

  const std::string& path() const { return path_; }

 private:
  DataDirectory(std::string path, FileDescriptor lock, FileDescriptor directory)
      : path_(std::move(path)), lock_(std::move(lock)), directory_(std::move(directory)) {}

  std::string path_;
  FileDescriptor lock_;
  FileDescriptor directory_;
};

// Converts errno: RESOURCE_EXHAUSTED when the disk is full or not writable, INTERNAL otherwise.
absl::Status FileError(const std::string& what, const std::string& path);

// Creates the directory if it is missing.
absl::Status MakeDirectory(const std::string& path);

// Makes created, renamed and removed entries of the directory durable (fsync).
absl::Status SyncDirectory(const std::string& path);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_STORAGE_DATA_DIRECTORY_H_
