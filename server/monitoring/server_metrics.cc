#include "server/monitoring/server_metrics.h"

#include <prometheus/client_metric.h>
#include <prometheus/metric_type.h>

#include <map>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/limits/memory_costs.h"
#include "server/platform/host_resources.h"

namespace nni_compression::server {
namespace {

using Labels = std::vector<std::pair<std::string, std::string>>;

// The label for algorithms that this server does not have, whose names are not bounded.
constexpr char kUnknownAlgorithm[] = "unknown";

prometheus::ClientMetric Sample(prometheus::MetricType type, double value, const Labels& labels) {
  prometheus::ClientMetric metric;
  for (const auto& [name, text] : labels) metric.label.push_back({name, text});
  (type == prometheus::MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
  return metric;
}

// Builds the metrics, each with its first sample.
class Families {
 public:
  explicit Families(std::vector<prometheus::MetricFamily> begun) : families_(std::move(begun)) {}

  void Gauge(const std::string& name, const std::string& help, double value,
             const Labels& labels = {}) {
    Add(prometheus::MetricType::Gauge, name, help, value, labels);
  }
  void Counter(const std::string& name, const std::string& help, double value) {
    Add(prometheus::MetricType::Counter, name, help, value, {});
  }

  std::vector<prometheus::MetricFamily> Take() { return std::move(families_); }

 private:
  // Samples of one name are adjacent.
  void Add(prometheus::MetricType type, const std::string& name, const std::string& help,
           double value, const Labels& labels) {
    if (families_.empty() || families_.back().name != name) {
      families_.push_back({name, help, type, {}});
    }
    families_.back().metric.push_back(Sample(type, value, labels));
  }

  std::vector<prometheus::MetricFamily> families_;
};

const char* Name(SessionState state) {
  switch (state) {
    case SessionState::kActive:
      return "active";
    case SessionState::kClosed:
      return "closed";
    case SessionState::kExpired:
      return "expired";
  }
  return "unknown";
}

void AddSessions(const Components& components, Families& out) {
  std::map<std::pair<std::string, SessionState>, int64_t> counts;
  for (const compression::AlgorithmInfo* info : components.registry->List()) {
    counts[{info->name, SessionState::kActive}] = 0;
  }
  for (const auto& [key, count] : components.sessions->Count()) {
    const bool known = components.registry->Find(key.first).ok();
    counts[{known ? key.first : kUnknownAlgorithm, key.second}] += count;
  }
  for (const auto& [key, count] : counts) {
    out.Gauge("nni_compression_sessions",
              "Sessions by algorithm and state; ended ones while their report is kept.",
              static_cast<double>(count), {{"algorithm", key.first}, {"state", Name(key.second)}});
  }
}

void AddMemory(const Components& components, Families& out) {
  out.Gauge("nni_compression_memory_reserved_bytes", "Reserved bytes of the memory budget.",
            static_cast<double>(components.budget->reserved()));
  out.Gauge("nni_compression_memory_overhead_bytes",
            "Bytes of open connections and running calls, in addition to the memory budget.",
            static_cast<double>(kConnectionBytes * components.connections->connections() +
                                kCallBytes * components.gate->calls()));
  out.Gauge("nni_compression_memory_budget_bytes", "The memory budget: bytes that tensors may use.",
            static_cast<double>(components.budget->limit()));
  out.Gauge("nni_compression_memory_waiting_tensors", "Tensors waiting for memory.",
            static_cast<double>(components.budget->waiting()));
  out.Gauge("nni_compression_shared_memory_bytes", "Bytes mapped for trainers on this host.",
            static_cast<double>(components.regions->mapped_bytes()));
}

void AddCache(const Components& components, Families& out) {
  out.Counter("nni_compression_weight_cache_hits_total",
              "Weights requested by digest that were in the cache.",
              static_cast<double>(components.weights->hits()));
  out.Counter("nni_compression_weight_cache_misses_total",
              "Weights requested by digest that were not in the cache.",
              static_cast<double>(components.weights->misses()));
  out.Gauge("nni_compression_weight_cache_bytes", "Bytes of the cached weights.",
            static_cast<double>(components.weights->bytes()));
  out.Gauge("nni_compression_weight_cache_limit_bytes", "Capacity of the weight cache in bytes.",
            static_cast<double>(components.weights->limit()));
  out.Gauge("nni_compression_weight_cache_weights", "Cached weights.",
            static_cast<double>(components.weights->weights()));
}

void AddCompute(const Components& components, Families& out) {
  for (const auto& [work, name] : {std::pair(Work::kShort, "short"), {Work::kLong, "long"}}) {
    out.Gauge("nni_compression_queue_depth", "Queued work by class: short, or long (megabytes).",
              static_cast<double>(components.executor->waiting(work)), {{"work", name}});
  }
  out.Gauge("nni_compression_compute_threads", "Compute threads.", components.executor->threads());
  for (const compression::AlgorithmInfo* info : components.registry->List()) {
    out.Gauge("nni_compression_algorithm_refused",
              "1 for an external algorithm that exceeded algorithm_timeout and is disabled until "
              "the server is restarted.",
              components.external->Refusal(info->name).empty() ? 0 : 1,
              {{"algorithm", info->name}});
  }
}

// The standard names of Prometheus client libraries.
void AddProcess(Families& out) {
  const ProcessUse use = ReadProcessUse();
  out.Counter("process_cpu_seconds_total", "CPU time of the process.", use.cpu_seconds);
  out.Gauge("process_resident_memory_bytes", "Resident memory of the process.",
            static_cast<double>(use.resident_bytes));
  out.Gauge("process_open_fds", "Open file descriptors.", use.open_files);
  out.Gauge("process_start_time_seconds", "Start time of the process, in seconds since the epoch.",
            use.start_seconds);
}

}  // namespace

std::vector<prometheus::MetricFamily> CollectMetrics(const Components& components) {
  Families out(components.metrics->Collect());
  out.Gauge("nni_compression_build_info", "Always 1; the version is the label.", 1,
            {{"version", components.version}});
  out.Gauge("nni_compression_serving", "1 while new calls are admitted, 0 while the server drains.",
            components.gate->open() ? 1 : 0);
  out.Gauge("nni_compression_connections", "Open connections.",
            components.connections->connections());
  out.Gauge("nni_compression_certificate_expiry_seconds",
            "When the server's certificate expires, in seconds since the epoch; 0 without TLS.",
            components.certificates == nullptr
                ? 0
                : absl::ToDoubleSeconds(components.certificates->expiry() - absl::UnixEpoch()));
  out.Gauge("nni_compression_calls_running", "Running calls.", components.gate->calls());
  AddSessions(components, out);
  AddMemory(components, out);
  AddCache(components, out);
  AddCompute(components, out);
  AddProcess(out);
  return out.Take();
}

}  // namespace nni_compression::server
