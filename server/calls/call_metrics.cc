#include "server/calls/call_metrics.h"

#include <prometheus/family.h>

#include <cstdlib>
#include <memory>

#include "absl/strings/str_cat.h"
#include "grpc/health/v1/health.pb.h"
#include "nni/compression/v1/compression.pb.h"

namespace nni_compression::server {
namespace {

// From a mere lookup to an upload of many GB.
const prometheus::Histogram::BucketBoundaries& Seconds() {
  static const auto* const bounds = new prometheus::Histogram::BucketBoundaries{
      0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300};
  return *bounds;
}

}  // namespace

void MethodMetrics::Ended(absl::StatusCode code, absl::Duration duration) {
  const auto i = static_cast<size_t>(code);
  calls_[i < calls_.size() ? i : static_cast<size_t>(absl::StatusCode::kUnknown)]->Increment();
  seconds_->Observe(absl::ToDoubleSeconds(duration));
}

CallMetrics::CallMetrics(const compression::Registry& algorithms) {
  auto& calls = prometheus::BuildCounter()
                    .Name("nni_compression_calls_total")
                    .Help("Calls that ended or were refused, by method and status code.")
                    .Register(registry_);
  auto& seconds = prometheus::BuildHistogram()
                      .Name("nni_compression_call_seconds")
                      .Help("Time from a call's admission to its status, by method.")
                      .Register(registry_);
  auto& received = prometheus::BuildCounter()
                       .Name("nni_compression_tensor_received_bytes_total")
                       .Help("Bytes of tensors received, by method.")
                       .Register(registry_);
  auto& sent = prometheus::BuildCounter()
                   .Name("nni_compression_tensor_sent_bytes_total")
                   .Help("Bytes of results sent, by method.")
                   .Register(registry_);
  for (const auto* service :
       {nni::compression::v1::BindModelRequest::descriptor()->file()->FindServiceByName(
            "CompressionService"),
        grpc::health::v1::HealthCheckRequest::descriptor()->file()->FindServiceByName("Health")}) {
    for (int i = 0; i < service->method_count(); ++i) {
      const std::string& name = service->method(i)->name();
      auto& metrics = methods_[absl::StrCat(service->full_name(), "/", name)];
      for (size_t code = 0; code < metrics.calls_.size(); ++code) {
        metrics.calls_[code] =
            &calls.Add({{"method", name},
                        {"code", absl::StatusCodeToString(static_cast<absl::StatusCode>(code))}});
      }
      metrics.seconds_ = &seconds.Add({{"method", name}}, Seconds());
      metrics.received_ = &received.Add({{"method", name}});
      metrics.sent_ = &sent.Add({{"method", name}});
    }
  }
  auto& compute = prometheus::BuildCounter()
                      .Name("nni_compression_compute_seconds_total")
                      .Help("Time that tasks of sessions took on compute threads, by algorithm.")
                      .Register(registry_);
  for (const compression::AlgorithmInfo* info : algorithms.List()) {
    compute_seconds_[info->name] = &compute.Add({{"algorithm", info->name}});
  }
}

MethodMetrics* CallMetrics::Find(absl::string_view method) {
  const auto found = methods_.find(method);
  return found == methods_.end() ? nullptr : &found->second;
}

void CallMetrics::Computed(absl::string_view algorithm, absl::Duration time) {
  // This server may lack the algorithm of a stored session.
  const auto found = compute_seconds_.find(algorithm);
  if (found != compute_seconds_.end()) found->second->Increment(absl::ToDoubleSeconds(time));
}

}  // namespace nni_compression::server
