#include "server/storage/record_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/disk/layout.h"
#include "server/platform/file_descriptor.h"
#include "server/platform/sha256.h"
#include "server/storage/data_directory.h"

namespace nni_compression::server {
namespace {

constexpr char kTemporary[] = "/unfinished";

// A file that cannot be read is lost for its session.
absl::Status ReadError(const std::string& what, const std::string& path) {
  const int error = errno;
  const absl::Status status = FileError(what, path);
  return error == EIO ? absl::DataLossError(status.message()) : status;
}

absl::Status WriteAll(int fd, absl::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t written = write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return FileError("write", path);
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<RecordFiles> RecordFiles::Open(const std::string& folder, bool sync) {
  RecordFiles files(folder, sync);
  if (absl::Status status = MakeDirectory(folder); !status.ok()) return status;
  unlink((folder + kTemporary).c_str());
  if (sync) {
    if (absl::Status status = SyncDirectory(folder); !status.ok()) return status;
  }
  return files;
}

absl::StatusOr<std::string> RecordFiles::Write(absl::string_view bytes) {
  const std::string digest = Sha256(bytes);
  const std::string path = Path(digest);
  const std::string temporary = folder_ + kTemporary;
  const absl::Status status = [&]() -> absl::Status {
    const FileDescriptor file(
        open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    if (!file.valid()) return FileError("open", temporary);
    if (absl::Status s = WriteAll(file.get(), bytes, temporary); !s.ok()) return s;
    if (sync_ && fsync(file.get()) != 0) return FileError("sync", temporary);
    const std::string subfolder = path.substr(0, path.rfind('/'));
    int renamed = rename(temporary.c_str(), path.c_str());
    if (renamed != 0 && errno == ENOENT) {  // the subfolder does not exist yet
      if (absl::Status s = MakeDirectory(subfolder); !s.ok()) return s;
      renamed = rename(temporary.c_str(), path.c_str());
    }
    if (renamed != 0) return FileError("rename to", path);
    return sync_ ? SyncName(subfolder) : absl::OkStatus();
  }();
  if (status.ok()) return digest;
  unlink(temporary.c_str());
  return status;
}

absl::Status RecordFiles::SyncName(const std::string& subfolder) {
  absl::Status status = SyncDirectory(subfolder);
  if (!status.ok() || synced_.count(subfolder) > 0) return status;
  status = SyncDirectory(folder_);
  if (status.ok()) synced_.insert(subfolder);
  return status;
}

absl::StatusOr<std::string> RecordFiles::Read(absl::string_view digest) const {
  const std::string path = Path(digest);
  const FileDescriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat properties = {};
  if (!file.valid() && errno == ENOENT) {
    return absl::NotFoundError(absl::StrCat("file '", path, "' is missing"));
  }
  if (!file.valid() || fstat(file.get(), &properties) != 0) return ReadError("open", path);
  std::string bytes(static_cast<size_t>(properties.st_size), '\0');
  size_t got = 0;
  while (got < bytes.size()) {
    const ssize_t count = read(file.get(), bytes.data() + got, bytes.size() - got);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return ReadError("read", path);
    if (count == 0) break;
    got += static_cast<size_t>(count);
  }
  if (got != bytes.size() || Sha256(bytes) != digest) {
    return absl::DataLossError(absl::StrCat("file '", path, "' is damaged"));
  }
  return bytes;
}

absl::Status RecordFiles::Remove(absl::string_view digest) const {
  const std::string path = Path(digest);
  if (unlink(path.c_str()) == 0 || errno == ENOENT) return absl::OkStatus();
  return FileError("remove", path);
}

absl::Status RecordFiles::SetAside(absl::string_view digest, const std::string& folder) const {
  const std::string path = Path(digest);
  const std::string target = absl::StrCat(folder, "/", absl::BytesToHexString(digest));
  if (absl::Status status = MakeDirectory(folder); !status.ok()) return status;
  if (rename(path.c_str(), target.c_str()) == 0 || errno == ENOENT) return absl::OkStatus();
  return FileError("move", path);
}

void RecordFiles::List(int folder,
                       const std::function<void(const std::string& digest)>& visit) const {
  const std::string path = Subfolder(folder);
  const std::string prefix = path.substr(path.size() - 2);
  std::error_code error;
  for (auto file = std::filesystem::directory_iterator(path, error);
       !error && file != std::filesystem::directory_iterator(); file.increment(error)) {
    const std::string name = prefix + file->path().filename().string();
    // Other files are not touched.
    if (name.size() == 2 * kSha256Bytes &&
        name.find_first_not_of("0123456789abcdef") == std::string::npos) {
      visit(absl::HexStringToBytes(name));
    }
  }
}

std::string RecordFiles::Path(absl::string_view digest) const {
  return layout::PathIn(folder_, layout::RecordPath(digest));
}

std::string RecordFiles::Subfolder(int i) const {
  return absl::StrCat(folder_, "/", absl::StrFormat("%02x", i));
}

}  // namespace nni_compression::server
