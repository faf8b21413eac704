// The components of a server that its calls use.
#ifndef NNI_COMPRESSION_SERVER_CALLS_COMPONENTS_H_
#define NNI_COMPRESSION_SERVER_CALLS_COMPONENTS_H_

#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "compression/algorithms/registry.h"
#include "server/base/executor.h"
#include "server/base/timer_thread.h"
#include "server/calls/call_context.h"
#include "server/calls/call_metrics.h"
#include "server/external/external_algorithm.h"
#include "server/limits/memory_budget.h"
#include "server/net/connection_listener.h"
#include "server/net/tls.h"
#include "server/sessions/durable_sessions.h"
#include "server/sessions/session_store.h"
#include "server/shm/region_table.h"
#include "server/tensors/stream_call.h"
#include "server/tensors/weight_cache.h"

namespace nni_compression::server {

// Owned by the Server, which outlives every call. All members are thread-safe.
struct Components {
  const compression::Registry* registry = nullptr;
  const ExternalAlgorithms* external = nullptr;
  Gate* gate = nullptr;
  CallMetrics* metrics = nullptr;
  Executor* executor = nullptr;
  TimerThread* timers = nullptr;
  std::shared_ptr<MemoryBudget> budget;
  SessionStore* sessions = nullptr;
  DurableSessions* durable = nullptr;  // null: sessions live in memory only
  RegionTable* regions = nullptr;
  ConnectionListener* connections = nullptr;
  const TlsCertificates* certificates = nullptr;  // null: connections are not encrypted
  WeightCache* weights = nullptr;
  absl::Duration stall_timeout = absl::Seconds(60);
  int64_t min_upload_rate = 0;  // bytes a second
  std::string version;

  // The executor of sessions of this algorithm.
  Executor* executor_of(absl::string_view algorithm) const {
    Executor* const own = external->ExecutorOf(algorithm);
    return own != nullptr ? own : executor;
  }

  StreamCall::Environment environment(const CallContext& context) const {
    return {budget.get(),           timers,         executor, stall_timeout, context.memory_quota(),
            context.upload_quota(), min_upload_rate};
  }
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_CALLS_COMPONENTS_H_
