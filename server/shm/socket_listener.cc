#include "server/shm/socket_listener.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/clock.h"
#include "server/base/log.h"
#include "server/net/listening_sockets.h"

namespace nni_compression::server {
namespace {

// Connections accepted in a row, and packets handled of one peer, before the others get their turn.
constexpr int kTurns = 16;

// Room for one file more than is valid, to detect it. The kernel closes those that do not fit.
constexpr size_t kMaxFiles = 2;

// The kernel's default; a changed /proc/sys/kernel/overflowuid appears in uid_map.
constexpr uid_t kOverflowUid = 65534;

// Takes ownership of every descriptor in the message.
std::vector<FileDescriptor> FilesOf(msghdr& message) {
  std::vector<FileDescriptor> files;
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
      files.emplace_back(fd);
    }
  }
  return files;
}

mode_t ModeFor(const std::vector<uid_t>& uids) {
  const bool own =
      std::all_of(uids.begin(), uids.end(), [](uid_t uid) { return uid == geteuid(); });
  return own ? 0600 : 0666;  // the peer's credentials are checked in addition
}

ShmSocketOptions WithDefaults(ShmSocketOptions options) {
  if (options.uids.empty()) options.uids = {geteuid()};
  return options;
}

// The peer's credentials, from the kernel.
std::optional<ucred> PeerOf(int socket) {
  ucred peer = {};
  socklen_t size = sizeof(peer);
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return std::nullopt;
  return peer;
}

void LogRefusedPeer(int socket, absl::string_view why) {
  const ucred peer = PeerOf(socket).value_or(ucred());
  LogLimited(LogLevel::kWarning, "side_socket_refused", absl::StrCat(peer.uid),
             {{"uid", peer.uid}, {"pid", peer.pid}, {"message", why}});
}

}  // namespace

absl::Status CheckUids(const std::vector<uid_t>& uids, const std::string& uid_map) {
  std::vector<std::pair<uint64_t, uint64_t>> known;  // first uid and count
  std::ifstream file(uid_map);
  for (uint64_t inside, outside, count; file >> inside >> outside >> count;) {
    known.emplace_back(inside, count);
  }
  for (const uid_t uid : uids) {
    if (uid == kOverflowUid) {
      return absl::InvalidArgumentError(absl::StrCat(
          "shm_uids has ", uid,
          ", the overflow uid, which stands for every user that is not mapped into this "
          "process's user namespace; it must identify one user"));
    }
    const bool is_known =
        known.empty() || std::any_of(known.begin(), known.end(), [uid](const auto& range) {
          return uid >= range.first && uid - range.first < range.second;
        });
    if (!is_known) {
      return absl::InvalidArgumentError(absl::StrCat(
          "shm_uids has ", uid, ", which is not mapped into this process's user namespace (",
          uid_map, "); under systemd, set PrivateUsers=no"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<SocketListener>> SocketListener::Start(
    const ShmSocketOptions& given, std::shared_ptr<Authenticator> authenticator,
    RegionTable* table) {
  const ShmSocketOptions options = WithDefaults(given);
  if (absl::Status status = CheckUids(options.uids); !status.ok()) return status;
  absl::StatusOr<SocketFile> socket =
      SocketFile::Listen("shm_socket", SOCK_SEQPACKET, options.path, ModeFor(options.uids));
  if (!socket.ok()) return socket.status();
  FileDescriptor wake_up(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_up.valid()) return absl::UnavailableError("the system has no eventfd");
  Log(LogLevel::kInfo, "side_socket", {{"path", options.path}});
  return std::unique_ptr<SocketListener>(new SocketListener(
      options, std::move(authenticator), table, *std::move(socket), std::move(wake_up)));
}

SocketListener::SocketListener(const ShmSocketOptions& options,
                               std::shared_ptr<Authenticator> authenticator, RegionTable* table,
                               SocketFile socket, FileDescriptor wake_up)
    : options_(options),
      authenticator_(std::move(authenticator)),
      table_(table),
      socket_(std::move(socket)),
      wake_up_(std::move(wake_up)),
      accept_after_(absl::InfinitePast()),
      thread_([this] { Loop(); }) {}

SocketListener::~SocketListener() {
  eventfd_write(wake_up_.get(), 1);
  thread_.join();
}

void SocketListener::Loop() {
  std::vector<pollfd> polled;
  while (true) {
    const absl::Time now = Clock::System()->Now();
    polled.clear();
    polled.push_back({wake_up_.get(), POLLIN, 0});
    polled.push_back({now < accept_after_ ? -1 : socket_.fd(), POLLIN, 0});
    for (const Peer& peer : peers_) polled.push_back({peer.socket.get(), POLLIN, 0});
    const absl::Duration timeout = NextTimeout(now);
    const int milliseconds =
        timeout == absl::InfiniteDuration()
            ? -1
            : static_cast<int>(absl::ToInt64Milliseconds(timeout + absl::Milliseconds(1)));
    if (poll(polled.data(), polled.size(), milliseconds) < 0) continue;  // a signal
    if (polled[0].revents != 0) break;
    size_t i = 2;
    const absl::Time then = Clock::System()->Now();
    for (auto peer = peers_.begin(); peer != peers_.end(); ++i) {
      const bool late = !peer->connection.admitted() && then >= peer->hello_deadline;
      const bool keep = polled[i].revents != 0 ? Serve(*peer) : !late;
      peer = keep ? std::next(peer) : peers_.erase(peer);
    }
    if (polled[1].revents != 0) Accept();
    connections_ = static_cast<int>(peers_.size());
  }
  peers_.clear();
  connections_ = 0;
}

absl::Duration SocketListener::NextTimeout(absl::Time now) const {
  absl::Time next = absl::InfiniteFuture();
  if (now < accept_after_) next = accept_after_;
  for (const Peer& peer : peers_) {
    if (!peer.connection.admitted()) next = std::min(next, peer.hello_deadline);
  }
  if (next == absl::InfiniteFuture()) return absl::InfiniteDuration();
  return std::max(next - now, absl::ZeroDuration());
}

void SocketListener::Accept() {
  for (int i = 0; i < kTurns; ++i) {
    FileDescriptor socket(accept4(socket_.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket.valid()) {
      if (IsOutOfDescriptors(errno)) {
        accept_after_ = Clock::System()->Now() + kAcceptPause;
      }
      return;
    }
    if (static_cast<int>(peers_.size()) >= options_.max_connections || !Admits(socket.get())) {
      continue;
    }
    peers_.emplace_back(
        std::move(socket), SocketConnection::Limits{options_.max_regions, table_->max_bytes() / 2},
        authenticator_.get(), table_, Clock::System()->Now() + options_.hello_timeout);
  }
}

bool SocketListener::Admits(int socket) const {
  const std::optional<ucred> peer = PeerOf(socket);
  if (!peer) return false;
  const auto& uids = options_.uids;
  if (std::find(uids.begin(), uids.end(), peer->uid) != uids.end()) return true;
  LogRefusedPeer(socket, "the user is not in shm_uids");
  return false;
}

// Returns whether the connection stays open.
bool SocketListener::Serve(Peer& peer) {
  char packet[SocketConnection::kMaxPacketBytes];
  for (int i = 0; i < kTurns; ++i) {
    alignas(cmsghdr) char control[CMSG_SPACE(kMaxFiles * sizeof(int))];
    iovec bytes = {packet, sizeof(packet)};
    msghdr message = {};
    message.msg_iov = &bytes;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    const ssize_t size = recvmsg(peer.socket.get(), &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (size < 0) return errno == EAGAIN || errno == EINTR;
    std::vector<FileDescriptor> files = FilesOf(message);
    if (size == 0) return false;  // the end; an empty packet is invalid anyway
    if ((message.msg_flags & MSG_TRUNC) != 0) return false;
    const SocketConnection::Answer answer =
        peer.connection.Handle({packet, static_cast<size_t>(size)}, files);
    files.clear();  // closed before the reply is sent
    const std::string reply = answer.reply.SerializeAsString();
    if (send(peer.socket.get(), reply.data(), reply.size(), MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
      return false;
    }
    if (answer.close) {
      if (!peer.connection.admitted()) LogRefusedPeer(peer.socket.get(), answer.reply.message());
      return false;
    }
  }
  return true;
}

}  // namespace nni_compression::server
