// What a session takes: in memory, and in storage.
#ifndef NNI_COMPRESSION_SERVER_SESSIONS_SESSION_MEMORY_H_
#define NNI_COMPRESSION_SERVER_SESSIONS_SESSION_MEMORY_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "compression/session/session.h"
#include "nni/compression/v1/compression.pb.h"
#include "server/limits/memory_budget.h"

namespace nni_compression::server {

// The memory of one session, as it grows. Thread-compatible: it belongs to the session's strand.
class SessionMemory {
 public:
  SessionMemory() = default;
  SessionMemory(MemoryBudget* budget, MemoryShare share)
      : budget_(budget), share_(std::move(share)) {}

  // Takes more, of the budget and of the tenant, for what `what` names ("the session's layers").
  // RESOURCE_EXHAUSTED when there is none now, or never will be.
  absl::Status Take(int64_t bytes, absl::string_view what);

  // As Take, for what grows a little at a time.
  absl::Status Grow(int64_t bytes, absl::string_view what);

  // Gives back what is above `bytes`. The rest is the server's from now on, not the tenant's.
  void Retire(int64_t bytes);

 private:
  MemoryBudget* budget_ = nullptr;
  MemoryShare share_;
  std::vector<Reservation> taken_;
  int64_t spare_ = 0;  // taken, and not grown into yet
};

// What binding the request leaves in memory: layers, names, rules, the plan. It stays, as the
// session's last report, a while after the session's end.
int64_t BindingBytes(const nni::compression::v1::BindModelRequest& request);

// What a session takes of which the catalogue entry alone is in memory.
int64_t EntryBytes(const nni::compression::v1::Session& entry);

// What the session's masks, scales and zero points may come to take.
int64_t AnswerBytes(const compression::Session& session);

// What the session takes in storage once all of its layers have been answered.
int64_t DiskBytes(const compression::Session& session,
                  const nni::compression::v1::BindModelRequest& request);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_SESSIONS_SESSION_MEMORY_H_
