#include "client/cpp/side_socket.h"

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
#include <fstream>
#include <system_error>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace nni_compression::internal {
namespace {

constexpr uint32_t kVersion = 1;
constexpr size_t kMaxPacketBytes = 16 << 10;
constexpr timeval kTimeout = {5, 0};

// Of the memory there is, the part that a client shares at most: a quarter.
constexpr int64_t kMemoryPart = 4;

// The machine's memory, or the container's.
int64_t MemoryLimit() {
  int64_t limit = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  std::vector<std::string> groups = {""};
  std::ifstream lines("/proc/self/cgroup");
  for (std::string line; std::getline(lines, line);) {
    if (absl::StartsWith(line, "0::")) groups.push_back(line.substr(3));
  }
  for (const std::string& group : groups) {
    int64_t bytes;
    if (std::ifstream(absl::StrCat("/sys/fs/cgroup", group, "/memory.max")) >> bytes) {
      limit = std::min(limit, bytes);
    }
  }
  return limit;
}

absl::Status Failed(const char* what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", std::strerror(errno)));
}

// PERMISSION_DENIED unless who listens may be told the token and shown the weights: this user,
// root, or the owner of the socket's folder, where nobody else can have put the socket or the
// folder. In /tmp, somebody may have listened first.
absl::Status CheckPeer(int fd, const std::string& path) {
  ucred peer = {};
  socklen_t size = sizeof(peer);
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return Failed("SO_PEERCRED");
  const auto mine = [](uid_t uid) { return uid == 0 || uid == geteuid(); };
  if (mine(peer.uid)) return absl::OkStatus();
  std::error_code error;
  std::filesystem::path folder = std::filesystem::canonical(path, error).parent_path();
  bool alone = !error;
  for (bool first = true; alone; first = false, folder = folder.parent_path()) {
    struct stat properties;
    alone = stat(folder.c_str(), &properties) == 0 && (properties.st_mode & 022) == 0 &&
            (properties.st_uid == peer.uid || (!first && mine(properties.st_uid)));
    if (folder == folder.root_path()) break;
  }
  if (alone) return absl::OkStatus();
  return absl::PermissionDeniedError(
      absl::StrCat("user ", peer.uid, " listens at ", path, ", whose folder is not theirs alone"));
}

}  // namespace

absl::StatusOr<SharedFile> SharedFile::Create(int64_t size) {
  SharedFile file;
  file.fd_ = memfd_create("nni-compression", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (file.fd_ < 0 || posix_fallocate(file.fd_, 0, size) != 0 ||
      fcntl(file.fd_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    return absl::ResourceExhaustedError(absl::StrCat("no shared memory of ", size, " bytes"));
  }
  void* const data = mmap(nullptr, static_cast<size_t>(size), PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_POPULATE, file.fd_, 0);
  if (data == MAP_FAILED) return absl::ResourceExhaustedError("no address space");
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

absl::StatusOr<std::shared_ptr<SideSocket>> SideSocket::Connect(const std::string& path,
                                                                const std::string& authorization) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError("the side socket's path is too long");
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  std::shared_ptr<SideSocket> side(
      new SideSocket(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)));
  if (side->fd_ < 0 ||
      setsockopt(side->fd_, SOL_SOCKET, SO_RCVTIMEO, &kTimeout, sizeof(kTimeout)) != 0 ||
      setsockopt(side->fd_, SOL_SOCKET, SO_SNDTIMEO, &kTimeout, sizeof(kTimeout)) != 0 ||
      connect(side->fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return Failed("connecting to the side socket");
  }
  if (absl::Status status = CheckPeer(side->fd_, path); !status.ok()) return status;
  v1::SideRequest hello;
  hello.mutable_hello()->set_version(kVersion);
  if (!authorization.empty()) {
    v1::SideRequest::Metadata* entry = hello.mutable_hello()->add_metadata();
    entry->set_key("authorization");
    entry->set_value(authorization);
  }
  const auto reply = side->Ask(hello);
  if (!reply.ok()) return reply.status();
  side->max_bytes_ = static_cast<int64_t>(
      std::min(reply->max_bytes(), static_cast<uint64_t>(MemoryLimit() / kMemoryPart)));
  return side;
}

SideSocket::~SideSocket() {
  if (fd_ >= 0) close(fd_);
}

bool SideSocket::broken() const {
  pollfd polled = {fd_, POLLIN, 0};
  return poll(&polled, 1, 0) != 0;  // it never speaks first
}

absl::StatusOr<std::string> SideSocket::AddRegion(const SharedFile& file, bool writable) {
  v1::SideRequest request;
  request.mutable_add_region()->set_byte_length(static_cast<uint64_t>(file.size()));
  request.mutable_add_region()->set_writable(writable);
  auto reply = Ask(request, file.fd());
  if (!reply.ok()) return reply.status();
  return std::move(*reply->mutable_region());
}

absl::Status SideSocket::DropRegion(const std::string& id) {
  v1::SideRequest request;
  request.mutable_drop_region()->set_region(id);
  return Ask(request).status();
}

absl::StatusOr<v1::SideReply> SideSocket::Ask(const v1::SideRequest& request, int file) {
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
  if (sendmsg(fd_, &message, MSG_NOSIGNAL) < 0) return Failed("asking the side socket");
  char answer[kMaxPacketBytes];
  const ssize_t size = recv(fd_, answer, sizeof(answer), 0);
  if (size < 0) return Failed("the side socket's answer");
  v1::SideReply reply;
  if (size == 0 || !reply.ParseFromArray(answer, static_cast<int>(size))) {
    return absl::UnavailableError("the side socket was closed, or is another program's");
  }
  if (reply.code() != 0) {
    return absl::Status(static_cast<absl::StatusCode>(reply.code()), reply.message());
  }
  return reply;
}

}  // namespace nni_compression::internal
