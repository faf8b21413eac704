#include "server/memory_budget.h"

#include <algorithm>
#include <utility>

namespace nni_compression::server {

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  if (this != &other) {
    ShrinkTo(0);
    budget_ = std::move(other.budget_);
    account_ = std::move(other.account_);
    bytes_ = std::exchange(other.bytes_, 0);
  }
  return *this;
}

void Reservation::ShrinkTo(int64_t bytes) {
  if (bytes >= bytes_) return;
  if (account_ != nullptr) account_->Subtract(bytes_ - bytes);
  budget_->Release(bytes_ - bytes);
  bytes_ = bytes;
}

Reservation Reservation::Split(int64_t bytes) {
  const int64_t taken = std::clamp<int64_t>(bytes, 0, bytes_);
  bytes_ -= taken;
  Reservation part(budget_, taken);
  part.account_ = account_;
  return part;
}

absl::Status Reservation::ChargeTo(const MemoryShare& share) {
  if (share.account == nullptr) return absl::OkStatus();
  if (absl::Status status = share.account->Add(bytes_, share.limit); !status.ok()) return status;
  account_ = share.account;
  return absl::OkStatus();
}

void Reservation::Uncharge() {
  if (account_ != nullptr) account_->Subtract(bytes_);
  account_.reset();
}

std::shared_ptr<MemoryBudget> MemoryBudget::Create(int64_t limit,
                                                   std::function<void(std::function<void()>)> run) {
  return std::shared_ptr<MemoryBudget>(new MemoryBudget(limit, std::move(run)));
}

void MemoryBudget::SetReclaimer(std::function<void(int64_t)> reclaim) {
  MutexLock lock(&reclaim_mutex_);
  reclaim_ = std::move(reclaim);
}

void MemoryBudget::Reclaim(int64_t bytes) {
  MutexLock lock(&reclaim_mutex_);
  if (reclaim_) reclaim_(bytes);
}

std::optional<Reservation> MemoryBudget::TryReserve(int64_t bytes) {
  for (int attempt = 0; attempt < 2; ++attempt) {
    int64_t missing = 0;
    {
      MutexLock lock(&mutex_);
      if (!waiters_.empty() || bytes > limit_) return std::nullopt;
      missing = bytes - (limit_ - reserved_);
      if (missing <= 0) {
        reserved_ += bytes;
        return Reservation(shared_from_this(), bytes);
      }
    }
    if (attempt == 0) Reclaim(missing);
  }
  return std::nullopt;
}

MemoryBudget::Ticket MemoryBudget::Reserve(int64_t bytes, Granted granted) {
  Ticket ticket;
  int64_t missing = 0;
  {
    MutexLock lock(&mutex_);
    ticket = next_ticket_++;
    if (bytes > limit_) return ticket;
    waiters_.push_back({ticket, bytes, std::move(granted)});
    for (const Waiter& waiter : waiters_) missing += waiter.bytes;
    missing -= limit_ - reserved_;
  }
  if (missing > 0) Reclaim(missing);
  Serve();
  return ticket;
}

bool MemoryBudget::Cancel(Ticket ticket) {
  std::list<Waiter> cancelled;  // destroyed without the lock
  {
    MutexLock lock(&mutex_);
    const auto it = std::find_if(waiters_.begin(), waiters_.end(),
                                 [ticket](const Waiter& w) { return w.ticket == ticket; });
    if (it == waiters_.end()) return false;
    cancelled.splice(cancelled.begin(), waiters_, it);
  }
  Serve();  // the next one may be smaller
  return true;
}

void MemoryBudget::Release(int64_t bytes) {
  {
    MutexLock lock(&mutex_);
    reserved_ -= bytes;
    if (waiters_.empty()) return;
  }
  Serve();
}

void MemoryBudget::Serve() {
  std::list<Waiter> served;
  {
    MutexLock lock(&mutex_);
    while (!waiters_.empty() && waiters_.front().bytes <= limit_ - reserved_) {
      reserved_ += waiters_.front().bytes;
      served.splice(served.end(), waiters_, waiters_.begin());
    }
  }
  for (Waiter& waiter : served) {
    auto reservation = std::make_shared<Reservation>(Reservation(shared_from_this(), waiter.bytes));
    run_([granted = std::move(waiter.granted), reservation] { granted(std::move(*reservation)); });
  }
}

int64_t MemoryBudget::reserved() const {
  MutexLock lock(&mutex_);
  return reserved_;
}

int64_t MemoryBudget::waiting() const {
  MutexLock lock(&mutex_);
  return static_cast<int64_t>(waiters_.size());
}

}  // namespace nni_compression::server
