// Metrics and probes over HTTP.
#ifndef NNI_COMPRESSION_SERVER_METRICS_LISTENER_H_
#define NNI_COMPRESSION_SERVER_METRICS_LISTENER_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace nni_compression::server {

// Answers GET without asking who calls, on three threads of its own:
//   /metrics  what `metrics` gives, for Prometheus
//   /livez    200 as long as there is somebody to say so
//   /readyz   200 while `ready`, then 503
// Thread-safe.
class MetricsListener {
 public:
  // `address` is HOST:PORT, checked already; port 0 picks one. The functions are called from two
  // of them. UNAVAILABLE when the address cannot be listened on.
  static absl::StatusOr<std::unique_ptr<MetricsListener>> Start(
      const std::string& address, std::function<std::string()> metrics,
      std::function<bool()> ready);

  // Waits for answers that are under way.
  ~MetricsListener();

  int port() const;

 private:
  class Impl;
  explicit MetricsListener(std::unique_ptr<Impl> impl);

  const std::unique_ptr<Impl> impl_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_METRICS_LISTENER_H_
