// Large records as immutable files, named by the digest of their content.
#ifndef NNI_COMPRESSION_SERVER_STORAGE_RECORD_FILES_H_
#define NNI_COMPRESSION_SERVER_STORAGE_RECORD_FILES_H_

#include <functional>
#include <set>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace nni_compression::server {

// Files FOLDER/ab/cdef..., where abcdef... is the SHA-256 of the content. A file is written under a
// temporary name and renamed, so that a file named by a digest is complete. Thread-safe, but only
// one thread at a time may write and remove.
class RecordFiles {
 public:
  // `sync`: written files survive a power failure. Creates the folder, and removes unfinished files
  // of an earlier process.
  static absl::StatusOr<RecordFiles> Open(const std::string& folder, bool sync);

  // Writes a file, replacing an existing one, and returns its digest. RESOURCE_EXHAUSTED when the
  // disk is full or not writable.
  absl::StatusOr<std::string> Write(absl::string_view bytes);

  // NOT_FOUND when there is no such file, DATA_LOSS when it cannot be read or its content does not
  // match the digest.
  absl::StatusOr<std::string> Read(absl::string_view digest) const;

  // OK also when there is no such file.
  absl::Status Remove(absl::string_view digest) const;

  // Moves a file to `folder`, which is created if missing, under the full digest as name.
  absl::Status SetAside(absl::string_view digest, const std::string& folder) const;

  // Calls `visit` with the digest of every file in one of the kFolders folders, as far as it is
  // readable.
  static constexpr int kFolders = 256;
  void List(int folder, const std::function<void(const std::string& digest)>& visit) const;

  std::string Path(absl::string_view digest) const;

 private:
  RecordFiles(std::string folder, bool sync) : folder_(std::move(folder)), sync_(sync) {}

  // Makes the name of a new file survive a power failure.
  absl::Status SyncName(const std::string& subfolder);

  std::string Subfolder(int i) const;

  std::string folder_;
  bool sync_ = false;
  std::set<std::string> synced_;  // subfolders whose names are synced
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_STORAGE_RECORD_FILES_H_
