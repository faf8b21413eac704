// Large records as files that never change, named by the digest of what is in them.
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

// Files as FOLDER/ab/cdef..., where abcdef... is the SHA-256 of the content. A file is written
// under a temporary name and renamed, so that one with a digest's name is whole. Thread-safe, but
// one thread at a time writes and removes.
class RecordFiles {
 public:
  // `sync`: what is written survives the machine. Makes the folder, and removes what an earlier
  // process did not finish.
  static absl::StatusOr<RecordFiles> Open(const std::string& folder, bool sync);

  // Writes a file, anew where it is there already, and returns its digest. RESOURCE_EXHAUSTED when
  // there is no room or nothing can be written.
  absl::StatusOr<std::string> Write(absl::string_view bytes);

  // NOT_FOUND when there is no such file, DATA_LOSS when it cannot be read or its content does not
  // have the digest.
  absl::StatusOr<std::string> Read(absl::string_view digest) const;

  // OK when there is no such file.
  absl::Status Remove(absl::string_view digest) const;

  // Moves a file to `folder`, which is made where it is missing, under its digest's whole name.
  absl::Status SetAside(absl::string_view digest, const std::string& folder) const;

  // Calls `visit` with the digest of every file in one of the kFolders folders, as far as it can be
  // read.
  static constexpr int kFolders = 256;
  void List(int folder, const std::function<void(const std::string& digest)>& visit) const;

  std::string Path(absl::string_view digest) const;

 private:
  RecordFiles(std::string folder, bool sync) : folder_(std::move(folder)), sync_(sync) {}

  // Makes the name of a file that was just put there survive the machine.
  absl::Status SyncName(const std::string& subfolder);

  std::string Subfolder(int i) const;

  std::string folder_;
  bool sync_ = false;
  std::set<std::string> synced_;  // subfolders whose own names are known to survive
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_STORAGE_RECORD_FILES_H_
