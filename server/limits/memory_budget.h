// How much memory calls and sessions may take, over all of them.
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

// What reserved bytes are for.
enum class MemoryUse {
  kPayload,  // tensors and results: goes back when the call is done, which needs nobody else
  kKept,     // the state of sessions: stays, for all that a waiting call knows
  // What calls keep account with: headers, queued answers. A call holds it while it waits for the
  // memory of a payload, too.
  kBookkeeping,
};

// Bytes taken from a budget; they go back when it is destroyed. Thread-compatible; may be destroyed
// on any thread.
class Reservation {
 public:
  Reservation() = default;
  Reservation(Reservation&& other) noexcept { *this = std::move(other); }
  Reservation& operator=(Reservation&& other) noexcept;
  ~Reservation() { ShrinkTo(0); }

  int64_t bytes() const { return bytes_; }

  // Gives back what is above `bytes`.
  void ShrinkTo(int64_t bytes);

  // Takes `bytes` of these, at most all, into a reservation of their own, on the same account.
  Reservation Split(int64_t bytes);

  // Takes over the bytes of another, which is of the same budget, account and use.
  void Merge(Reservation other);

  // Puts the bytes on a tenant's account, once, until they are given back or Uncharge. As
  // MemoryAccount::Add.
  absl::Status ChargeTo(const MemoryShare& share);
  void Uncharge();

 private:
  friend class MemoryBudget;
  // As the budget counts it.
  enum class Kind { kPayload, kPassed, kKept, kBookkeeping };
  Reservation(std::shared_ptr<MemoryBudget> budget, std::shared_ptr<MemoryAccount> account,
              int64_t bytes, Kind kind)
      : budget_(std::move(budget)), account_(std::move(account)), bytes_(bytes), kind_(kind) {}

  std::shared_ptr<MemoryBudget> budget_;
  std::shared_ptr<MemoryAccount> account_;
  int64_t bytes_ = 0;
  Kind kind_ = Kind::kPayload;
};

// Thread-safe. Payloads that have to wait are served in their order. One that there is room for
// passes those in front of it that there is none for, as long as it takes nothing that any of them
// will need: what passed and what is kept, together with the largest that waits, stays within the
// limit. So a small request is not held up by a large one, and the large one gets its turn as soon
// as those that were there before it are done. One for which that would not be enough is refused.
//
// Bookkeeping never waits, as a call that holds a payload may need it to come to an end. It may
// take a sixteenth of the limit beyond it, and above that what payloads leave.
class MemoryBudget : public std::enable_shared_from_this<MemoryBudget> {
 public:
  using Granted = std::function<void(Reservation)>;
  using Ticket = uint64_t;

  // `run` is given the functions that tell waiters, which read a message on; it must run each of
  // them, later, with no lock held (an Executor, for example).
  static std::shared_ptr<MemoryBudget> Create(int64_t limit,
                                              std::function<void(std::function<void()>)> run);

  // `reclaim` is called, on any thread and with no lock held, when that many bytes are missing for
  // a reservation; it may let go of others. Null: nobody can. Once it returned, no call of the one
  // before is under way.
  void SetReclaimer(std::function<void(int64_t bytes)> reclaim);

  // nullopt when there is not enough, or it would have to pass a request that waits and may not.
  std::optional<Reservation> TryReserve(int64_t bytes, MemoryUse use = MemoryUse::kPayload);

  // The same for memory of a tenant, whose account is charged first. As MemoryAccount::Add.
  absl::StatusOr<std::optional<Reservation>> TryReserve(int64_t bytes, const MemoryShare& share,
                                                        MemoryUse use = MemoryUse::kPayload);

  // The same for those who do not wait: what TryReserve has no room for is a Refusal.
  absl::StatusOr<Reservation> ReserveNow(int64_t bytes, const MemoryShare& share, MemoryUse use,
                                         absl::string_view what);

  // RESOURCE_EXHAUSTED: there is no memory for `what`. To be retried, unless the limit is smaller.
  absl::Status Refusal(int64_t bytes, MemoryUse use, absl::string_view what) const;

  // Calls `granted` once there is room for a payload. The tenant's account is charged from now on:
  // what is above its limit does not wait. RESOURCE_EXHAUSTED for that, and for what there would be
  // no room for though all payloads that are there now were gone.
  absl::StatusOr<Ticket> Reserve(int64_t bytes, const MemoryShare& share, Granted granted);

  // Whether the request was still waiting: `granted` is then not called, and destroyed. Otherwise
  // it was or will be called.
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
    Reservation memory;  // charged to its account; its own once it is served
    Granted granted;
  };
  using Waiters = std::list<Waiter>;

  void Release(int64_t bytes, Kind kind);
  void Reclaim(int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_, reclaim_mutex_);

  int64_t& Count(Kind kind) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  int64_t BeyondLimit() const;  // for bookkeeping
  // Bookkeeping that takes the room of payloads, when there were `more` of it.
  int64_t Excess(int64_t more = 0) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What there is room for once all payloads that did not pass others are gone.
  int64_t Capacity() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  int64_t Room() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);  // now
  bool Fits(int64_t bytes, Kind kind) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  int64_t LargestWaiting() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Takes the waiters that may be served now, in their order, and tells them.
  void Serve() ABSL_LOCKS_EXCLUDED(mutex_);

  const int64_t limit_;
  const std::function<void(std::function<void()>)> run_;
  Mutex reclaim_mutex_;  // held while it runs
  std::function<void(int64_t)> reclaim_ ABSL_GUARDED_BY(reclaim_mutex_);
  mutable Mutex mutex_;
  int64_t payload_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t passed_ ABSL_GUARDED_BY(mutex_) = 0;  // payloads that passed others
  int64_t kept_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t bookkeeping_ ABSL_GUARDED_BY(mutex_) = 0;
  Ticket next_ticket_ ABSL_GUARDED_BY(mutex_) = 1;
  Waiters waiters_ ABSL_GUARDED_BY(mutex_);
  std::multiset<int64_t> waiting_bytes_ ABSL_GUARDED_BY(mutex_);  // of waiters_
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_LIMITS_MEMORY_BUDGET_H_
