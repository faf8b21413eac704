#include "client/cpp/shared_memory_socket.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/platform/host_resources.h"

namespace nni_compression::internal {
namespace {

constexpr uint32_t kVersion = 1;
constexpr size_t kMaxPacketBytes = 16 << 10;
constexpr timeval kTimeout = {5, 0};

// A client shares at most a quarter of the memory.
constexpr int64_t kMemoryDivisor = 4;

absl::Status Failed(const char* what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", std::strerror(errno)));
}

// PERMISSION_DENIED unless the listener may get the token and the weights: it runs as this user, as
// root, or as the owner of the socket's folder, provided that no other user can have created the
// socket or the folder. In /tmp, any user could have listened first.
absl::Status CheckPeer(int fd, const std::string& path) {
  ucred peer = {};
  socklen_t size = sizeof(peer);
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0)
    return Failed("cannot tell which user listens at the shared-memory socket");
  const auto trusted = [](uid_t uid) { return uid == 0 || uid == geteuid(); };
  if (trusted(peer.uid)) return absl::OkStatus();
  std::error_code error;
  std::filesystem::path folder = std::filesystem::canonical(path, error).parent_path();
  bool exclusive = !error;
  for (bool first = true; exclusive; first = false, folder = folder.parent_path()) {
    struct stat properties;
    exclusive = stat(folder.c_str(), &properties) == 0 && (properties.st_mode & 022) == 0 &&
                (properties.st_uid == peer.uid || (!first && trusted(properties.st_uid)));
    if (folder == folder.root_path()) break;
  }
  if (exclusive) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat("user ", peer.uid, " listens at ", path,
                                                  ", in a folder that other users can change"));
}

}  // namespace

absl::StatusOr<SharedFile> SharedFile::Create(int64_t size) {
  SharedFile file;
  file.fd_ = memfd_create("nni-compression", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (file.fd_ < 0 || posix_fallocate(file.fd_, 0, size) != 0 ||
      fcntl(file.fd_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cannot allocate ", size, " bytes of shared memory"));
  }
  void* const data = mmap(nullptr, static_cast<size_t>(size), PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_POPULATE, file.fd_, 0);
  if (data == MAP_FAILED) return absl::ResourceExhaustedError("cannot map shared memory");
  file.data_ = static_cast<uint8_t*>(data);
  file.size_ = size;
  return file;
}

SharedFile& SharedFile::operator=(SharedFile&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

SharedFile::~SharedFile() {
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(size_));
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<std::shared_ptr<SharedMemorySocket>> SharedMemorySocket::Connect(
    const std::string& path, const std::string& authorization) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError("the path of the shared-memory socket is too long");
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  std::shared_ptr<SharedMemorySocket> connection(
      new SharedMemorySocket(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)));
  if (connection->fd_ < 0 ||
      setsockopt(connection->fd_, SOL_SOCKET, SO_RCVTIMEO, &kTimeout, sizeof(kTimeout)) != 0 ||
      setsockopt(connection->fd_, SOL_SOCKET, SO_SNDTIMEO, &kTimeout, sizeof(kTimeout)) != 0 ||
      connect(connection->fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return Failed("cannot connect to the shared-memory socket");
  }
  if (absl::Status status = CheckPeer(connection->fd_, path); !status.ok()) return status;
  v1::SideRequest hello;
  hello.mutable_hello()->set_version(kVersion);
  if (!authorization.empty()) {
    v1::SideRequest::Metadata* entry = hello.mutable_hello()->add_metadata();
    entry->set_key("authorization");
    entry->set_value(authorization);
  }
  const auto reply = connection->Ask(hello);
  if (!reply.ok()) return reply.status();
  connection->max_bytes_ = static_cast<int64_t>(
      std::min(reply->max_bytes(), static_cast<uint64_t>(server::MemoryLimit() / kMemoryDivisor)));
  return connection;
}

SharedMemorySocket::~SharedMemorySocket() {
  if (fd_ >= 0) close(fd_);
}

bool SharedMemorySocket::broken() const {
  if (failed_) return true;
  pollfd polled = {fd_, POLLIN, 0};
  return poll(&polled, 1, 0) != 0;  // the server never sends first
}

absl::StatusOr<std::string> SharedMemorySocket::AddRegion(const SharedFile& file, bool writable) {
  v1::SideRequest request;
  request.mutable_add_region()->set_byte_length(static_cast<uint64_t>(file.size()));
  request.mutable_add_region()->set_writable(writable);
  auto reply = Ask(request, file.fd());
  if (!reply.ok()) return reply.status();
  return std::move(*reply->mutable_region());
}

absl::Status SharedMemorySocket::DropRegion(const std::string& id) {
  v1::SideRequest request;
  request.mutable_drop_region()->set_region(id);
  return Ask(request).status();
}

absl::StatusOr<v1::SideReply> SharedMemorySocket::Ask(const v1::SideRequest& request, int file) {
  if (failed_) {
    return absl::UnavailableError("an earlier request on the shared-memory socket had no reply");
  }
  // A reply after a timeout would be taken for that of the next request.
  failed_ = true;
  std::string packet = request.SerializeAsString();
  iovec bytes = {packet.data(), packet.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  if (file >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &file, sizeof(int));
  }
  if (sendmsg(fd_, &message, MSG_NOSIGNAL) < 0)
    return Failed("cannot write to the shared-memory socket");
  char answer[kMaxPacketBytes];
  const ssize_t size = recv(fd_, answer, sizeof(answer), 0);
  if (size < 0) return Failed("cannot read from the shared-memory socket");
  v1::SideReply reply;
  if (size == 0 || !reply.ParseFromArray(answer, static_cast<int>(size))) {
    return absl::UnavailableError(
        "the shared-memory socket was closed, or belongs to another program");
  }
  failed_ = false;
  if (reply.code() != 0) {
    return absl::Status(static_cast<absl::StatusCode>(reply.code()), reply.message());
  }
  return reply;
}

}  // namespace nni_compression::internal
