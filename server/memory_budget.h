// How much memory tensors may take, over all calls and sessions.
#ifndef NNI_COMPRESSION_SERVER_MEMORY_BUDGET_H_
#define NNI_COMPRESSION_SERVER_MEMORY_BUDGET_H_

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "server/memory_account.h"
#include "server/mutex.h"

namespace nni_compression::server {

class MemoryBudget;

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

  // Puts the bytes on a tenant's account, once, until they are given back or Uncharge. As
  // MemoryAccount::Add.
  absl::Status ChargeTo(const MemoryShare& share);
  void Uncharge();

 private:
  friend class MemoryBudget;
  Reservation(std::shared_ptr<MemoryBudget> budget, int64_t bytes)
      : budget_(std::move(budget)), bytes_(bytes) {}

  std::shared_ptr<MemoryBudget> budget_;
  std::shared_ptr<MemoryAccount> account_;
  int64_t bytes_ = 0;
};

// Thread-safe. Requests that have to wait are served in their order, and later ones do not overtake
// them, so that a large tensor gets its turn.
class MemoryBudget : public std::enable_shared_from_this<MemoryBudget> {
 public:
  using Granted = std::function<void(Reservation)>;
  using Ticket = uint64_t;

  // `run` is given the functions that tell waiters; it must run each of them, later, with no lock
  // held (a TimerThread, for example).
  static std::shared_ptr<MemoryBudget> Create(int64_t limit,
                                              std::function<void(std::function<void()>)> run);

  // `reclaim` is called, on any thread and with no lock held, when that many bytes are missing for
  // a reservation; it may let go of others. Null: nobody can. Once it returned, no call of the one
  // before is under way.
  void SetReclaimer(std::function<void(int64_t bytes)> reclaim);

  // Nothing when there is not enough, or others wait already.
  std::optional<Reservation> TryReserve(int64_t bytes);

  // Calls `granted` once the bytes are there, and never when `bytes` is above the limit.
  Ticket Reserve(int64_t bytes, Granted granted);

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

  struct Waiter {
    Ticket ticket;
    int64_t bytes;
    Granted granted;
  };

  void Release(int64_t bytes);
  void Reclaim(int64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_, reclaim_mutex_);

  // Takes the waiters that fit now, in their order, and tells them.
  void Serve() ABSL_LOCKS_EXCLUDED(mutex_);

  const int64_t limit_;
  const std::function<void(std::function<void()>)> run_;
  Mutex reclaim_mutex_;  // held while it runs
  std::function<void(int64_t)> reclaim_ ABSL_GUARDED_BY(reclaim_mutex_);
  mutable Mutex mutex_;
  int64_t reserved_ ABSL_GUARDED_BY(mutex_) = 0;
  Ticket next_ticket_ ABSL_GUARDED_BY(mutex_) = 1;
  std::list<Waiter> waiters_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_MEMORY_BUDGET_H_
