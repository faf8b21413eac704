#include "server/net/socket_file.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace nni_compression::server {
namespace {

constexpr int kBacklog = 128;

absl::Status Unavailable(absl::string_view flag, const std::string& path, int error) {
  return absl::UnavailableError(
      absl::StrCat("cannot listen on ", flag, " '", path, "': ", std::strerror(error)));
}

// Removes a socket that no process listens on any more.
absl::Status RemoveStale(absl::string_view flag, int type, const std::string& path,
                         const sockaddr_un& address) {
  struct stat file;
  if (lstat(path.c_str(), &file) != 0) {
    return errno == ENOENT ? absl::OkStatus() : Unavailable(flag, path, errno);
  }
  if (!S_ISSOCK(file.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat(flag, " is '", path,
                     "', which exists and is not a socket; remove it or choose another path"));
  }
  const FileDescriptor probe(socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!probe.valid()) return Unavailable(flag, path, errno);
  if (connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 ||
      errno != ECONNREFUSED) {
    return Unavailable(flag, path, EADDRINUSE);
  }
  return unlink(path.c_str()) == 0 || errno == ENOENT ? absl::OkStatus()
                                                      : Unavailable(flag, path, errno);
}

}  // namespace

absl::StatusOr<SocketFile> SocketFile::Listen(absl::string_view flag, int type,
                                              const std::string& path, std::optional<mode_t> mode) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat(flag, " has ", path.size(),
                                                   " bytes; the path of a socket must have 1 to ",
                                                   sizeof(address.sun_path) - 1));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  if (absl::Status status = RemoveStale(flag, type, path, address); !status.ok()) return status;
  FileDescriptor socket(::socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  struct stat file;
  // No client can connect before listen, so the mode is set in time.
  if (!socket.valid() ||
      bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
      (mode && chmod(path.c_str(), *mode) != 0) || lstat(path.c_str(), &file) != 0 ||
      listen(socket.get(), kBacklog) != 0) {
    return Unavailable(flag, path, errno);
  }
  return SocketFile(path, std::move(socket), file.st_dev, file.st_ino);
}

SocketFile::~SocketFile() {
  if (!socket_.valid()) return;
  struct stat file;
  if (lstat(path_.c_str(), &file) == 0 && file.st_dev == device_ && file.st_ino == inode_) {
    unlink(path_.c_str());
  }
}

}  // namespace nni_compression::server
