// What all calls of a server work with.
#ifndef NNI_COMPRESSION_SERVER_CORE_H_
#define NNI_COMPRESSION_SERVER_CORE_H_

#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "compression/registry.h"
#include "server/call_context.h"
#include "server/call_metrics.h"
#include "server/connection_listener.h"
#include "server/durable_sessions.h"
#include "server/executor.h"
#include "server/foreign_algorithm.h"
#include "server/memory_budget.h"
#include "server/session_store.h"
#include "server/shm/region_table.h"
#include "server/stream_call.h"
#include "server/timer_thread.h"
#include "server/tls.h"
#include "server/weight_cache.h"

namespace nni_compression::server {

// Owned by the Server, which outlives every call. All of it is thread-safe.
struct Core {
  const compression::Registry* registry = nullptr;
  const ForeignAlgorithms* foreign = nullptr;
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

  // Where a session of the algorithm runs.
  Executor* executor_of(absl::string_view algorithm) const {
    Executor* const own = foreign->ExecutorOf(algorithm);
    return own != nullptr ? own : executor;
  }

  StreamCall::Environment environment(const CallContext& context) const {
    return {budget.get(),           timers,         executor, stall_timeout, context.memory_share(),
            context.upload_share(), min_upload_rate};
  }
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_CORE_H_
