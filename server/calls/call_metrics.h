// Metrics of calls.
#ifndef NNI_COMPRESSION_SERVER_CALLS_CALL_METRICS_H_
#define NNI_COMPRESSION_SERVER_CALLS_CALL_METRICS_H_

#include <prometheus/counter.h>
#include <prometheus/histogram.h>
#include <prometheus/metric_family.h>
#include <prometheus/registry.h>

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "compression/algorithms/registry.h"

namespace nni_compression::server {

// Counters of one method. Thread-safe; the only lock is that of the histogram, taken once per call.
class MethodMetrics {
 public:
  // A call has ended or was refused. `duration` starts at its admission.
  void Ended(absl::StatusCode code, absl::Duration duration);

  // Bytes of tensors, over a socket or by shared memory.
  void Received(int64_t bytes) { received_->Increment(static_cast<double>(bytes)); }
  void Sent(int64_t bytes) { sent_->Increment(static_cast<double>(bytes)); }

 private:
  friend class CallMetrics;
  std::array<prometheus::Counter*, 17> calls_ = {};  // by status code
  prometheus::Histogram* seconds_ = nullptr;
  prometheus::Counter* received_ = nullptr;
  prometheus::Counter* sent_ = nullptr;
};

// Labels come from the service descriptors, the status codes and the registry only, so that callers
// cannot add label values; all exist, as 0, from the start. Thread-safe.
class CallMetrics {
 public:
  explicit CallMetrics(const compression::Registry& algorithms);

  // `method` is "nni.compression.v1.CompressionService/BindModel", for example; null: the server
  // has no such method. Lives as long as the metrics.
  MethodMetrics* Find(absl::string_view method);

  // A task of a session took `time` on a compute thread.
  void Computed(absl::string_view algorithm, absl::Duration time);

  std::vector<prometheus::MetricFamily> Collect() const { return registry_.Collect(); }

 private:
  prometheus::Registry registry_;
  // Filled by the constructor.
  std::map<std::string, MethodMetrics, std::less<>> methods_;
  std::map<std::string, prometheus::Counter*, std::less<>> compute_seconds_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_CALLS_CALL_METRICS_H_
