// Metrics and probes over HTTP.
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

// Answers GET and HEAD without asking who calls:
//   /metrics  what `metrics` gives, for Prometheus
//   /livez    200 as long as there is somebody to say so
//   /readyz   200 while `ready`, then 503
// One request a connection. Whoever reaches the port can neither silence the probes nor use up
// what the main port needs:
//  * One thread serves all connections and waits for none of them; metrics are collected by
//    another, for all that have asked meanwhile, and for a tenth of its time at most.
//  * A request has 8 KiB and 2 s, an answer 5 s to be read, and there are at most 64 connections.
//    A new one takes the place of the oldest that has not sent its request yet, so that what does
//    so at once is answered however many others do not.
// Thread-safe.
class MetricsListener {
 public:
  static constexpr size_t kMaxConnections = 64;
  static constexpr size_t kMaxRequestBytes = 8 << 10;

  // `address` is HOST:PORT, checked already; port 0 picks one. `metrics` may take its time, `ready`
  // may not. UNAVAILABLE when the address cannot be listened on.
  static absl::StatusOr<std::unique_ptr<MetricsListener>> Start(
      const std::string& address, std::function<std::string()> metrics,
      std::function<bool()> ready);

  // Waits for `metrics`, if it is under way.
  ~MetricsListener();

  int port() const { return port_; }

 private:
  using SteadyTime = std::chrono::steady_clock::time_point;  // whatever becomes of the clock
  struct Connection {
    FileDescriptor socket;
    SteadyTime deadline;
    std::string request;      // until it is complete
    uint64_t collection = 0;  // that it waits for; 0: none
    bool without_body = false;
    std::string head;  // of the answer; not empty: it is being sent
    std::shared_ptr<const std::string> body;
    size_t sent = 0;  // of both
  };
  using Connections = std::list<Connection>;

  MetricsListener(std::function<std::string()> metrics, std::function<bool()> ready)
      : metrics_(std::move(metrics)), ready_(std::move(ready)) {}

  void Serve();
  void Collect();

  // Of the serving thread. These return whether the connection goes on.
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
  FileDescriptor wake_up_;   // an eventfd: there are metrics, or it is time to stop
  Connections connections_;  // in the order in which they came
  SteadyTime accept_after_ = {};

  Mutex mutex_;
  CondVar changed_;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  // Collections by number.
  uint64_t wanted_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t begun_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t collected_ ABSL_GUARDED_BY(mutex_) = 0;
  std::shared_ptr<const std::string> text_ ABSL_GUARDED_BY(mutex_);  // of the last one

  std::thread collector_;
  std::thread server_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_MONITORING_METRICS_LISTENER_H_
