// The HTTP server of metrics and probes.
#ifndef NNI_COMPRESSION_SERVER_MONITORING_METRICS_LISTENER_H_
#define NNI_COMPRESSION_SERVER_MONITORING_METRICS_LISTENER_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "server/base/mutex.h"
#include "server/platform/file_descriptor.h"

namespace nni_compression::server {

// Answers GET and HEAD, without authentication:
//   /metrics  the text of `metrics`, for Prometheus
//   /livez    200 as long as the process lives
//   /readyz   200 while `ready`, then 503
// One request per connection. A client of the port can neither block the probes nor exhaust
// resources of the main port:
//  * One thread serves all connections and blocks on none of them; another one collects metrics,
//    once for all pending requests, and for at most a tenth of the time.
//  * A request is limited to 8 KiB and 2 s, reading the answer to 5 s, and there are at most 64
//    connections. A new one replaces the oldest that has not sent its request yet, so that a client
//    that sends it at once is answered however many others do not.
// Thread-safe.
class MetricsListener {
 public:
  static constexpr size_t kMaxConnections = 64;
  static constexpr size_t kMaxRequestBytes = 8 << 10;

  // `address` is a valid HOST:PORT; port 0 picks one. `metrics` may be slow, `ready` must not be.
  // UNAVAILABLE when it cannot listen on the address.
  static absl::StatusOr<std::unique_ptr<MetricsListener>> Start(
      const std::string& address, std::function<std::string()> metrics,
      std::function<bool()> ready);

  // Waits for a running call of `metrics`.
  ~MetricsListener();

  int port() const { return port_; }

 private:
  using SteadyTime = std::chrono::steady_clock::time_point;  // independent of the system clock
  struct Connection {
    FileDescriptor socket;
    SteadyTime deadline;
    std::string request;      // as received so far
    uint64_t collection = 0;  // the collection that it waits for; 0: none
    bool without_body = false;
    std::string head;  // of the answer; empty until it is being sent
    std::shared_ptr<const std::string> body;
    size_t sent = 0;  // of head and body
  };
  using Connections = std::list<Connection>;

  MetricsListener(std::function<std::string()> metrics, std::function<bool()> ready)
      : metrics_(std::move(metrics)), ready_(std::move(ready)) {}

  void Serve();
  void Collect();

  // On the serving thread. These return whether the connection stays open.
  bool Advance(Connection& connection);
  bool Read(Connection& connection);
  bool Send(Connection& connection);
  void Handle(Connection& connection);
  static void Answer(Connection& connection, int status, std::string body);
  static void Answer(Connection& connection, int status, std::shared_ptr<const std::string> body);

  void Accept(int listener);
  void MakeRoom();
  void DropLate(SteadyTime now);
  void AnswerCollected();
  int PollTimeout(SteadyTime now) const;

  const std::function<std::string()> metrics_;
  const std::function<bool()> ready_;
  int port_ = 0;
  std::vector<FileDescriptor> sockets_;
  FileDescriptor wake_up_;   // an eventfd: a collection is done, or the end
  Connections connections_;  // in the order of acceptance
  SteadyTime accept_after_ = {};

  Mutex mutex_;
  CondVar changed_;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  // Collections are numbered.
  uint64_t wanted_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t begun_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t collected_ ABSL_GUARDED_BY(mutex_) = 0;
  std::shared_ptr<const std::string> text_ ABSL_GUARDED_BY(mutex_);  // of the last collection

  std::thread collector_;
  std::thread server_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_MONITORING_METRICS_LISTENER_H_
