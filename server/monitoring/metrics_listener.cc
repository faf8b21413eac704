#include "server/monitoring/metrics_listener.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/net/listening_sockets.h"

namespace nni_compression::server {
namespace {

constexpr std::chrono::seconds kRequestTime(2);
constexpr std::chrono::seconds kAnswerTime(5);
constexpr absl::Duration kUserTimeout = absl::Seconds(5);

// The minimum pause after a collection, as a multiple of its duration.
constexpr int kRest = 9;
constexpr std::chrono::seconds kMaxRest(1);

// Connections accepted in a row, before open ones get their turn.
constexpr size_t kAcceptsInARow = 16;

const char* Reason(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 431:
      return "Request Header Fields Too Large";
    default:
      return "Service Unavailable";
  }
}

// Whether the request has its final empty line. Requests have no body.
bool IsComplete(absl::string_view request) {
  return absl::StrContains(request, "\r\n\r\n") || absl::StrContains(request, "\n\n");
}

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsListener>> MetricsListener::Start(
    const std::string& address, std::function<std::string()> metrics, std::function<bool()> ready) {
  absl::StatusOr<ListeningSockets> listening = ListenOnHost(address, kUserTimeout);
  if (!listening.ok()) {
    return absl::UnavailableError(absl::StrCat("metrics_listen: ", listening.status().message()));
  }
  std::unique_ptr<MetricsListener> listener(
      new MetricsListener(std::move(metrics), std::move(ready)));
  listener->port_ = listening->port;
  listener->sockets_ = std::move(listening->sockets);
  listener->wake_up_ = FileDescriptor(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!listener->wake_up_.valid()) return absl::UnavailableError("cannot create an eventfd");
  listener->collector_ = std::thread([self = listener.get()] { self->Collect(); });
  listener->server_ = std::thread([self = listener.get()] { self->Serve(); });
  return listener;
}

MetricsListener::~MetricsListener() {
  {
    MutexLock lock(&mutex_);
    stopped_ = true;
    changed_.NotifyAll();
  }
  if (!server_.joinable()) return;
  eventfd_write(wake_up_.get(), 1);
  server_.join();
  collector_.join();
}

void MetricsListener::Collect() {
  while (true) {
    uint64_t number = 0;
    {
      MutexLock lock(&mutex_);
      while (!stopped_ && wanted_ == begun_) changed_.Wait(&mutex_);
      if (stopped_) return;
      number = begun_ = wanted_;
    }
    const SteadyTime start = std::chrono::steady_clock::now();
    auto text = std::make_shared<const std::string>(metrics_());
    const SteadyTime end = std::chrono::steady_clock::now();
    MutexLock lock(&mutex_);
    text_ = std::move(text);
    collected_ = number;
    eventfd_write(wake_up_.get(), 1);
    const SteadyTime next = end + std::min<SteadyTime::duration>(kRest * (end - start), kMaxRest);
    for (SteadyTime now = end; !stopped_ && now < next; now = std::chrono::steady_clock::now()) {
      changed_.WaitFor(&mutex_, absl::FromChrono(next - now));
    }
  }
}

void MetricsListener::Serve() {
  std::vector<pollfd> polled;
  while (true) {
    SteadyTime now = std::chrono::steady_clock::now();
    polled.assign(1, {wake_up_.get(), POLLIN, 0});
    for (const FileDescriptor& socket : sockets_) {
      polled.push_back({now < accept_after_ ? -1 : socket.get(), POLLIN, 0});
    }
    for (const Connection& connection : connections_) {
      const short events = !connection.head.empty()     ? POLLOUT
                           : connection.collection == 0 ? POLLIN
                                                        : 0;
      polled.push_back({connection.socket.get(), events, 0});
    }
    if (poll(polled.data(), polled.size(), PollTimeout(now)) < 0) continue;  // a signal
    if (polled[0].revents != 0) {
      eventfd_t unused;
      eventfd_read(wake_up_.get(), &unused);
      MutexLock lock(&mutex_);
      if (stopped_) return;
    }
    size_t i = 1 + sockets_.size();
    for (auto connection = connections_.begin(); connection != connections_.end(); ++i) {
      const bool goes_on = polled[i].revents == 0 || Advance(*connection);
      connection = goes_on ? std::next(connection) : connections_.erase(connection);
    }
    AnswerCollected();
    for (size_t socket = 0; socket < sockets_.size(); ++socket) {
      if (polled[1 + socket].revents != 0) Accept(sockets_[socket].get());
    }
    DropLate(std::chrono::steady_clock::now());
  }
}

int MetricsListener::PollTimeout(SteadyTime now) const {
  SteadyTime next = SteadyTime::max();
  if (now < accept_after_) next = accept_after_;
  for (const Connection& connection : connections_) next = std::min(next, connection.deadline);
  if (next == SteadyTime::max()) return -1;
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(next - now).count();
  return static_cast<int>(std::max<int64_t>(left, 0)) + 1;
}

void MetricsListener::Accept(int listener) {
  for (size_t turn = 0; turn < kAcceptsInARow; ++turn) {
    FileDescriptor socket(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket.valid()) {
      if (IsOutOfDescriptors(errno)) {
        accept_after_ = std::chrono::steady_clock::now() + absl::ToChronoMilliseconds(kAcceptPause);
      }
      return;
    }
    if (connections_.size() >= kMaxConnections) MakeRoom();
    connections_.emplace_back();
    connections_.back().socket = std::move(socket);
    connections_.back().deadline = std::chrono::steady_clock::now() + kRequestTime;
    // Connections that have sent their request are answered before new ones can replace them.
    if (!Advance(connections_.back())) connections_.pop_back();
  }
}

void MetricsListener::MakeRoom() {
  const auto silent = std::find_if(
      connections_.begin(), connections_.end(),
      [](const Connection& each) { return each.head.empty() && each.collection == 0; });
  connections_.erase(silent != connections_.end() ? silent : connections_.begin());
}

void MetricsListener::DropLate(SteadyTime now) {
  connections_.remove_if([now](const Connection& each) { return now >= each.deadline; });
}

void MetricsListener::AnswerCollected() {
  MutexLock lock(&mutex_);
  for (auto connection = connections_.begin(); connection != connections_.end();) {
    bool goes_on = true;
    if (connection->head.empty() && connection->collection != 0 &&
        connection->collection <= collected_) {
      Answer(*connection, 200, text_);
      goes_on = Send(*connection);
    }
    connection = goes_on ? std::next(connection) : connections_.erase(connection);
  }
}

bool MetricsListener::Advance(Connection& connection) {
  if (!connection.head.empty()) return Send(connection);
  if (connection.collection != 0) return false;  // closed: nothing else was polled for
  return Read(connection);
}

bool MetricsListener::Read(Connection& connection) {
  char bytes[1024];
  while (true) {
    const ssize_t count = recv(connection.socket.get(), bytes, sizeof(bytes), 0);
    if (count < 0) return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
    if (count == 0) return false;
    connection.request.append(bytes, static_cast<size_t>(count));
    if (IsComplete(connection.request)) {
      Handle(connection);
    } else if (connection.request.size() > kMaxRequestBytes) {
      Answer(connection, 431, "the request must be at most 8 KiB\n");
    } else {
      continue;
    }
    return connection.head.empty() || Send(connection);
  }
}

void MetricsListener::Handle(Connection& connection) {
  const std::string request = std::exchange(connection.request, {});
  connection.deadline = std::chrono::steady_clock::now() + kAnswerTime;
  const absl::string_view line =
      absl::string_view(request).substr(0, request.find_first_of("\r\n"));
  const std::vector<absl::string_view> words = absl::StrSplit(line, ' ');
  if (words.size() != 3 || !absl::StartsWith(words[2], "HTTP/1.")) {
    return Answer(connection, 400, "the request must be HTTP/1\n");
  }
  connection.without_body = words[0] == "HEAD";
  if (words[0] != "GET" && words[0] != "HEAD") {
    return Answer(connection, 405, "the method must be GET or HEAD\n");
  }
  const absl::string_view path = words[1].substr(0, words[1].find('?'));
  if (path == "/livez") return Answer(connection, 200, "ok\n");
  if (path == "/readyz") {
    return ready_() ? Answer(connection, 200, "ok\n") : Answer(connection, 503, "draining\n");
  }
  if (path != "/metrics") {
    return Answer(connection, 404, "the path must be /metrics, /livez or /readyz\n");
  }
  MutexLock lock(&mutex_);
  // A collection that begins after this request.
  if (wanted_ == begun_) ++wanted_;
  connection.collection = wanted_;
  changed_.NotifyAll();
}

void MetricsListener::Answer(Connection& connection, int status, std::string body) {
  Answer(connection, status, std::make_shared<const std::string>(std::move(body)));
}

void MetricsListener::Answer(Connection& connection, int status,
                             std::shared_ptr<const std::string> body) {
  connection.head = absl::StrCat("HTTP/1.1 ", status, " ", Reason(status), "\r\n",
                                 "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n",
                                 "Content-Length: ", body->size(), "\r\nConnection: close\r\n",
                                 status == 405 ? "Allow: GET, HEAD\r\n" : "", "\r\n");
  if (!connection.without_body) connection.body = std::move(body);
}

bool MetricsListener::Send(Connection& connection) {
  while (true) {
    absl::string_view rest = connection.head;
    if (connection.sent < rest.size()) {
      rest.remove_prefix(connection.sent);
    } else {
      const size_t of_body = connection.sent - rest.size();
      if (connection.body == nullptr || of_body == connection.body->size()) return false;  // done
      rest = absl::string_view(*connection.body).substr(of_body);
    }
    const ssize_t count = send(connection.socket.get(), rest.data(), rest.size(), MSG_NOSIGNAL);
    if (count < 0) return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
    connection.sent += static_cast<size_t>(count);
  }
}

}  // namespace nni_compression::server
