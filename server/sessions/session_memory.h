// The memory and the storage that a session takes.
#ifndef NNI_COMPRESSION_SERVER_SESSIONS_SESSION_MEMORY_H_
#define NNI_COMPRESSION_SERVER_SESSIONS_SESSION_MEMORY_H_

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "compression/session/session.h"
#include "nni/compression/v1/compression.pb.h"
#include "server/limits/memory_budget.h"

namespace nni_compression::server {

// Named numbers that a trainer has reported.
using Results = std::map<std::string, double>;

// The reservations of one session, which grow with it. Thread-compatible: used on the session's
// strand.
class SessionMemory {
 public:
  SessionMemory() = default;
  SessionMemory(MemoryBudget* budget, MemoryQuota quota)
      : budget_(budget), quota_(std::move(quota)) {}

  // Reserves memory from the budget and the tenant's quota. `what` ("the session's layers") is for
  // messages. RESOURCE_EXHAUSTED when there is none, now or ever.
  absl::Status Reserve(int64_t bytes, absl::string_view what);

  // As Reserve, for state that grows in small steps.
  absl::Status Grow(int64_t bytes, absl::string_view what);

  // Releases what exceeds `bytes`. The rest is charged to the server from now on, not to the
  // tenant.
  void Retire(int64_t bytes);

 private:
  MemoryBudget* budget_ = nullptr;
  MemoryQuota quota_;
  std::vector<Reservation> reservations_;
  int64_t unused_ = 0;  // reserved ahead by Grow
};

// Memory of a bound request: layers, names, rules, the plan. It is kept for a while after the
// session's end, for the last report.
int64_t BindingBytes(const nni::compression::v1::BindModelRequest& request);

// Memory of results, kept as long.
int64_t ResultsBytes(const Results& results);

// Memory that binding it takes in addition, until it is bound.
int64_t PatternBytes(const nni::compression::v1::BindModelRequest& request);

// Memory of a session with only its catalogue entry loaded.
int64_t EntryBytes(const nni::compression::v1::Session& entry);

// Upper bound of the memory of the session's masks, scales and zero points.
int64_t AnswerBytes(const compression::Session& session);

// Storage of the session once all of its layers have been answered.
int64_t DiskBytes(const compression::Session& session,
                  const nni::compression::v1::BindModelRequest& request);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_SESSIONS_SESSION_MEMORY_H_
