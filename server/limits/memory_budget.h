// The memory budget of all calls and sessions together.
#ifndef NNI_COMPRESSION_SERVER_LIMITS_MEMORY_BUDGET_H_
#define NNI_COMPRESSION_SERVER_LIMITS_MEMORY_BUDGET_H_

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <set>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/base/mutex.h"
#include "server/limits/memory_account.h"

namespace nni_compression::server {

class MemoryBudget;

// The purpose of reserved bytes.
enum class MemoryUse {
  kPayload,  // tensors and results: released when the call ends, which depends on no other call
  kKept,     // state of sessions: may be held for any time
  // Headers and queued answers. A call may hold it while it waits for payload memory.
  kBookkeeping,
};

// Bytes reserved from a budget; the destructor releases them. Thread-compatible; may be destroyed
// on any thread.
class Reservation {
 public:
  Reservation() = default;
  Reservation(Reservation&& other) noexcept { *this = std::move(other); }
  Reservation& operator=(Reservation&& other) noexcept;
  ~Reservation() { ShrinkTo(0); }

  int64_t bytes() const { return bytes_; }

  // Releases what exceeds `bytes`.
  void ShrinkTo(int64_t bytes);

  // Moves `bytes`, at most all of them, into a reservation of their own, on the same account.
  Reservation Split(int64_t bytes);

  // Absorbs another reservation of the same budget, account and use.
  void Merge(Reservation other);

  // Charges the bytes to a tenant's account, at most once, until they are released or Uncharge.
  // Errors as MemoryAccount::Add.
  absl::Status ChargeTo(const MemoryQuota& quota);
  void Uncharge();

 private:
  friend class MemoryBudget;
  // How the budget counts the bytes.
  enum class Kind { kPayload, kPassed, kKept, kBookkeeping };
  Reservation(std::shared_ptr<MemoryBudget> budget, std::shared_ptr<MemoryAccount> account,
              int64_t bytes, Kind kind)
      : budget_(std::move(budget)), account_(std::move(account)), bytes_(bytes), kind_(kind) {}

  std::shared_ptr<MemoryBudget> budget_;
  std::shared_ptr<MemoryAccount> account_;
  int64_t bytes_ = 0;
  Kind kind_ = Kind::kPayload;
};

// Thread-safe. Waiting payloads are served in FIFO order. A request that fits may overtake waiters
// that do not, as long as it cannot delay any of them: the overtaking bytes, the kept bytes and the
// largest waiter together stay within the limit. So a large request does not block small ones, and
// is served as soon as the payloads before it are released. A request that could not be served even
// then is refused.
//
// Bookkeeping never waits, since a call that holds a payload may need it to finish. It may exceed
// the limit by a sixteenth, and beyond that uses what payloads leave.
class MemoryBudget : public std::enable_shared_from_this<MemoryBudget> {
 public:
  using Granted = std::function<void(Reservation)>;
  using Ticket = uint64_t;

  // `run` gets the functions that notify waiters, which continue to read a message; it must run
  // each of them later and with no lock held (for example on an Executor).
  static std::shared_ptr<MemoryBudget> Create(int64_t limit,
                                              std::function<void(std::function<void()>)> run);

  // `reclaim` is called, on any thread and with no lock held, when a reservation lacks that many
  // bytes; it may release others. Null removes it. When SetReclaimer returns, no call of the
  // previous one is running.
  void SetReclaimer(std::function<void(int64_t bytes)> reclaim);

  // nullopt when there is not enough memory, or it would have to overtake a waiter and may not.
  std::optional<Reservation> TryReserve(int64_t bytes, MemoryUse use = MemoryUse::kPayload);

  // The same for memory of a tenant, whose account is charged first. Errors as MemoryAccount::Add.
  absl::StatusOr<std::optional<Reservation>> TryReserve(int64_t bytes, const MemoryQuota& quota,
                                                        MemoryUse use = MemoryUse::kPayload);

  // The same for callers that do not wait: returns a Refusal where TryReserve returns nullopt.
  absl::StatusOr<Reservation> ReserveNow(int64_t bytes, const MemoryQuota& quota, MemoryUse use,
                                         absl::string_view what);

  // RESOURCE_EXHAUSTED: there is no memory for `what`. Retryable, unless it exceeds the limit.
  absl::Status Refusal(int64_t bytes, MemoryUse use, absl::string_view what) const;

  // Calls `granted` once there is room for a payload. The tenant's account is charged from now on;
  // a request above its limit does not wait. RESOURCE_EXHAUSTED for that, and for a request that
  // would not fit even if all current payloads were released.
  absl::StatusOr<Ticket> Reserve(int64_t bytes, const MemoryQuota& quota, Granted granted);

  // Returns whether the request was still waiting: `granted` is then destroyed and not called.
  // Otherwise it was or will be called.
  bool Cancel(Ticket ticket);

  int64_t limit() const { return limit_; }
  int64_t reserved() const;
  int64_t waiting() const;  // requests

 private:
  friend class Reservation;
  MemoryBudget(int64_t limit, std::function<void(std::function<void()>)> run)
      : limit_(limit), run_(std::move(run)) {}

  using Kind = Reservation::Kind;

  struct Waiter {
    Ticket ticket;
    Reservation memory;  // charged to the account; reserved once it is served
    Granted granted;
  };
  using Waiters = std::list<Waiter>;

  void Release(int64_t bytes, Kind kind);
  void Reclaim(int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_, reclaim_mutex_);

  int64_t& Count(Kind kind) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  int64_t BeyondLimit() const;  // for bookkeeping
  // Bookkeeping that would use the room of payloads, with `more` bytes added.
  int64_t Excess(int64_t more = 0) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The room once all payloads that did not overtake others are released.
  int64_t Capacity() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  int64_t Room() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);  // now
  bool Fits(int64_t bytes, Kind kind) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  int64_t LargestWaiting() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Serves the waiters that may be served now, in order.
  void Serve() ABSL_LOCKS_EXCLUDED(mutex_);

  const int64_t limit_;
  const std::function<void(std::function<void()>)> run_;
  Mutex reclaim_mutex_;  // held while it runs
  std::function<void(int64_t)> reclaim_ ABSL_GUARDED_BY(reclaim_mutex_);
  mutable Mutex mutex_;
  int64_t payload_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t passed_ ABSL_GUARDED_BY(mutex_) = 0;  // payloads that overtook others
  int64_t kept_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t bookkeeping_ ABSL_GUARDED_BY(mutex_) = 0;
  Ticket next_ticket_ ABSL_GUARDED_BY(mutex_) = 1;
  Waiters waiters_ ABSL_GUARDED_BY(mutex_);
  std::multiset<int64_t> waiting_bytes_ ABSL_GUARDED_BY(mutex_);  // of waiters_
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_LIMITS_MEMORY_BUDGET_H_
