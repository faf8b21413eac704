#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/cpp/connection.h"
#include "client/cpp/convert.h"
#include "client/cpp/export.h"
#include "nni_compression/files.h"

namespace nni_compression {
namespace {

absl::Status Errno(absl::string_view what, const std::string& path) {
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot ", what, " ", path));
}

constexpr char kConfig[] = "/config.json";

// Whether an export has written it: then it only describes the quantization of the model.
bool IsExportedConfig(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const auto config = internal::ParseJsonObject(text, path);
  if (!config.ok() || config->fields_size() != 1) return false;
  const auto found = config->fields().find("quantization_config");
  if (found == config->fields().end()) return false;
  const auto& fields = found->second.struct_value().fields();
  const auto method = fields.find("quant_method");
  return method != fields.end() && method->second.string_value() == "compressed-tensors";
}

}  // namespace

absl::StatusOr<DirectorySink> DirectorySink::Create(absl::string_view directory,
                                                    ExistingFiles existing) {
  std::string path(directory);
  if (mkdir(path.c_str(), 0777) != 0 && errno != EEXIST) return Errno("make directory", path);
  struct stat status;
  if (stat(path.c_str(), &status) != 0) return Errno("stat", path);
  if (!S_ISDIR(status.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a directory"));
  }
  return DirectorySink(std::move(path), existing);
}

DirectorySink::~DirectorySink() { Discard(); }

DirectorySink::DirectorySink(DirectorySink&& other) noexcept
    : directory_(std::move(other.directory_)),
      existing_(other.existing_),
      warnings_(std::move(other.warnings_)),
      files_(std::exchange(other.files_, {})),
      descriptor_(std::exchange(other.descriptor_, -1)) {}

absl::Status DirectorySink::CheckFree(const std::string& path) const {
  struct stat status;
  if (lstat(path.c_str(), &status) != 0) return absl::OkStatus();
  if (existing_ == ExistingFiles::kKeep) {
    return absl::AlreadyExistsError(absl::StrCat(path, " already exists"));
  }
  if (absl::EndsWith(path, kConfig) && !IsExportedConfig(path)) {
    return absl::AlreadyExistsError(
        absl::StrCat(path,
                     " already exists and was not written by an export; choose another "
                     "directory"));
  }
  return absl::OkStatus();
}

absl::Status DirectorySink::Begin(const std::string& name, int64_t byte_length) {
  if (absl::Status named = internal::CheckFileName(name); !named.ok()) return named;
  File file;
  file.path = absl::StrCat(directory_, "/", name);
  if (absl::Status free = CheckFree(file.path); !free.ok()) return free;
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
  // Before the rename: after a crash the name must not belong to a file without its bytes.
  const bool synced = fsync(descriptor) == 0;
  absl::Status status = synced ? absl::OkStatus() : Errno("write", files_.back().temporary);
  if (close(descriptor) != 0 && status.ok()) status = Errno("close", files_.back().temporary);
  return status;
}

absl::Status DirectorySink::Restart() {
  Discard();
  warnings_.clear();
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> DirectorySink::Commit() {
  std::vector<std::string> paths;
  for (const File& file : files_) {
    if (absl::Status free = CheckFree(file.path); !free.ok()) return free;
  }
  const unsigned flags = existing_ == ExistingFiles::kKeep ? RENAME_NOREPLACE : 0;
  for (File& file : files_) {
    const char *from = file.temporary.c_str(), *to = file.path.c_str();
    // Some file systems lack RENAME_NOREPLACE; there the check above has to do.
    const bool renamed = renameat2(AT_FDCWD, from, AT_FDCWD, to, flags) == 0 ||
                         (errno == EINVAL && rename(from, to) == 0);
    if (!renamed && errno == EEXIST) return CheckFree(file.path);
    if (!renamed) return Errno("write", file.path);
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
