#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/connection.h"
#include "client/cpp/export.h"
#include "nni_compression/files.h"

namespace nni_compression {
namespace {

absl::Status Errno(absl::string_view what, const std::string& path) {
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot ", what, " ", path));
}

}  // namespace

absl::StatusOr<DirectorySink> DirectorySink::Create(absl::string_view directory) {
  std::string path(directory);
  if (mkdir(path.c_str(), 0777) != 0 && errno != EEXIST) return Errno("make directory", path);
  struct stat status;
  if (stat(path.c_str(), &status) != 0) return Errno("look at", path);
  if (!S_ISDIR(status.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a directory"));
  }
  return DirectorySink(std::move(path));
}

DirectorySink::~DirectorySink() { Discard(); }

DirectorySink::DirectorySink(DirectorySink&& other) noexcept
    : directory_(std::move(other.directory_)),
      files_(std::exchange(other.files_, {})),
      descriptor_(std::exchange(other.descriptor_, -1)) {}

absl::Status DirectorySink::Begin(const std::string& name, int64_t byte_length) {
  if (absl::Status named = internal::CheckFileName(name); !named.ok()) return named;
  File file;
  file.path = absl::StrCat(directory_, "/", name);
  file.temporary = absl::StrCat(directory_, "/.", internal::RandomId(), ".partial");
  descriptor_ =
      open(file.temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (descriptor_ < 0) return Errno("create", file.temporary);
  files_.push_back(std::move(file));
  return absl::OkStatus();
}

absl::Status DirectorySink::Write(absl::Span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(descriptor_, bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      return Errno("write", files_.back().temporary);
    }
    bytes.remove_prefix(written);
  }
  return absl::OkStatus();
}

absl::Status DirectorySink::End() {
  const int descriptor = std::exchange(descriptor_, -1);
  // Before the rename: after a crash the name must not stand for a file without its bytes.
  const bool synced = fsync(descriptor) == 0;
  absl::Status status = synced ? absl::OkStatus() : Errno("write", files_.back().temporary);
  if (close(descriptor) != 0 && status.ok()) status = Errno("close", files_.back().temporary);
  return status;
}

absl::Status DirectorySink::Restart() {
  Discard();
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> DirectorySink::Commit() {
  std::vector<std::string> paths;
  for (File& file : files_) {
    if (rename(file.temporary.c_str(), file.path.c_str()) != 0) return Errno("write", file.path);
    file.temporary.clear();
    paths.push_back(file.path);
  }
  files_.clear();
  return paths;
}

void DirectorySink::Discard() {
  if (descriptor_ >= 0) close(std::exchange(descriptor_, -1));
  for (const File& file : files_) {
    if (!file.temporary.empty()) unlink(file.temporary.c_str());
  }
  files_.clear();
}

}  // namespace nni_compression
