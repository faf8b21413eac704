#include "server/net/connection_listener.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/base/log.h"
#include "server/net/listen_address.h"
#include "server/net/listening_sockets.h"

namespace nni_compression::server {
namespace {

// How often, at the connection limit, connections that have ended are removed.
constexpr std::chrono::milliseconds kSweepInterval(100);

constexpr std::chrono::minutes kWarningInterval(1);

// Connections accepted in a row, before another socket gets its turn.
constexpr int kConnectionsInARow = 16;

// Descriptors for everything else (files, the shared-memory socket, libraries), but at most half of
// all.
constexpr rlim_t kOtherDescriptors = 512;

int Affordable(int max_connections) {
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) {
    return max_connections;
  }
  const rlim_t others = std::min(kOtherDescriptors, limit.rlim_cur / 2);
  const rlim_t spare = std::max<rlim_t>(limit.rlim_cur - others, 1);
  return static_cast<int>(std::min<rlim_t>(static_cast<rlim_t>(max_connections), spare));
}

}  // namespace

absl::StatusOr<std::unique_ptr<ConnectionListener>> ConnectionListener::Listen(
    const std::string& address, int max_connections, absl::Duration user_timeout) {
  std::unique_ptr<ConnectionListener> listener(new ConnectionListener(Affordable(max_connections)));
  if (!listener->wake_up_.valid()) return absl::UnavailableError("cannot create an eventfd");
  if (IsUnixAddress(address)) {
    if (absl::Status status = listener->ListenOnUnix(address); !status.ok()) return status;
    return listener;
  }
  absl::StatusOr<ListeningSockets> sockets = ListenOnHost(address, user_timeout);
  if (!sockets.ok()) return sockets.status();
  listener->port_ = sockets->port;
  listener->sockets_ = std::move(sockets->sockets);
  for (const FileDescriptor& socket : listener->sockets_) {
    listener->listeners_.push_back(socket.get());
  }
  return listener;
}

ConnectionListener::ConnectionListener(int max_connections)
    : max_connections_(max_connections), wake_up_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

ConnectionListener::~ConnectionListener() { Stop(); }

absl::Status ConnectionListener::ListenOnUnix(const std::string& address) {
  absl::string_view name = address;
  if (absl::ConsumePrefix(&name, "unix:")) {
    absl::StatusOr<SocketFile> file =
        SocketFile::Listen("listen", SOCK_STREAM, std::string(name), std::nullopt);
    if (!file.ok()) return file.status();
    file_.emplace(*std::move(file));
    listeners_.push_back(file_->fd());
    return absl::OkStatus();
  }
  absl::ConsumePrefix(&name, "unix-abstract:");
  sockaddr_un abstract = {};
  abstract.sun_family = AF_UNIX;
  if (name.size() >= sizeof(abstract.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat("the name in listen has ", name.size(),
                                                   " bytes; it must have 1 to ",
                                                   sizeof(abstract.sun_path) - 1));
  }
  std::memcpy(abstract.sun_path + 1, name.data(), name.size());
  FileDescriptor socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  if (!socket.valid() || bind(socket.get(), reinterpret_cast<sockaddr*>(&abstract), size) != 0 ||
      listen(socket.get(), SOMAXCONN) != 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", address, ": ", std::strerror(errno)));
  }
  listeners_.push_back(socket.get());
  sockets_.push_back(std::move(socket));
  return absl::OkStatus();
}

void ConnectionListener::Start(Handler handler) {
  handler_ = std::move(handler);
  thread_ = std::thread([this] { Loop(); });
}

void ConnectionListener::Stop() {
  if (!thread_.joinable()) return;
  eventfd_write(wake_up_.get(), 1);
  thread_.join();
  listeners_.clear();
  sockets_.clear();
  file_.reset();
}

int ConnectionListener::connections() {
  MutexLock lock(&mutex_);
  RemoveEnded();
  return static_cast<int>(connections_.size());
}

void ConnectionListener::Loop() {
  std::vector<pollfd> polled;
  while (true) {
    polled.assign(1, {wake_up_.get(), POLLIN, 0});
    for (const int listener : listeners_) polled.push_back({paused_ ? -1 : listener, POLLIN, 0});
    const int events =
        poll(polled.data(), polled.size(),
             paused_ ? static_cast<int>(absl::ToInt64Milliseconds(kAcceptPause)) : -1);
    if (events < 0) continue;  // a signal
    if (polled[0].revents != 0) return;
    paused_ = false;
    for (const pollfd& one : polled) {
      if (one.revents == 0) continue;
      for (int turn = 0; turn < kConnectionsInARow && Accept(one.fd); ++turn) {
      }
    }
  }
}

bool ConnectionListener::Accept(int listener) {
  const int socket = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (socket < 0) {
    paused_ = IsOutOfDescriptors(errno);
    return errno == EINTR || errno == ECONNABORTED;
  }
  if (Admit(socket)) {
    handler_(listener, socket);
  } else {
    close(socket);
  }
  return true;
}

bool ConnectionListener::Admit(int socket) {
  struct stat file;
  if (fstat(socket, &file) != 0) return false;
  const auto limit = static_cast<size_t>(max_connections_);
  const auto now = std::chrono::steady_clock::now();
  MutexLock lock(&mutex_);
  if (connections_.size() >= limit && now >= last_sweep_ + kSweepInterval) {
    RemoveEnded();
    last_sweep_ = now;
  }
  if (connections_.size() < limit) {
    connections_.push_back({socket, file.st_ino});
    return true;
  }
  if (!last_warning_ || now >= *last_warning_ + kWarningInterval) {
    last_warning_ = now;
    Log(LogLevel::kWarning, "connections_refused", {{"max_connections", max_connections_}});
  }
  return false;
}

void ConnectionListener::RemoveEnded() {
  const auto ended = [](const Connection& connection) {
    struct stat file;
    return fstat(connection.socket, &file) != 0 || file.st_ino != connection.inode ||
           !S_ISSOCK(file.st_mode);
  };
  connections_.erase(std::remove_if(connections_.begin(), connections_.end(), ended),
                     connections_.end());
}

}  // namespace nni_compression::server
