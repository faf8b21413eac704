#include "server/limits/memory_budget.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/errors.h"

namespace nni_compression::server {
namespace {

// Bookkeeping may exceed the limit by a sixteenth, and by at least 1 MiB.
constexpr int64_t kBookkeepingShare = 16;
constexpr int64_t kLeastBookkeeping = 1 << 20;

}  // namespace

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  if (this != &other) {
    ShrinkTo(0);
    budget_ = std::move(other.budget_);
    account_ = std::move(other.account_);
    bytes_ = std::exchange(other.bytes_, 0);
    kind_ = other.kind_;
  }
  return *this;
}

void Reservation::ShrinkTo(int64_t bytes) {
  if (bytes >= bytes_) return;
  if (account_ != nullptr) account_->Subtract(bytes_ - bytes);
  if (budget_ != nullptr) budget_->Release(bytes_ - bytes, kind_);
  bytes_ = bytes;
}

Reservation Reservation::Split(int64_t bytes) {
  const int64_t taken = std::clamp<int64_t>(bytes, 0, bytes_);
  bytes_ -= taken;
  return Reservation(budget_, account_, taken, kind_);
}

void Reservation::Merge(Reservation other) {
  if (bytes_ == 0) {
    *this = std::move(other);
  } else if (other.account_ == account_ && other.kind_ == kind_) {
    bytes_ += std::exchange(other.bytes_, 0);
  }
}

absl::Status Reservation::ChargeTo(const MemoryQuota& quota) {
  if (quota.account == nullptr) return absl::OkStatus();
  if (absl::Status status = quota.account->Add(bytes_, quota.limit); !status.ok()) return status;
  account_ = quota.account;
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

int64_t& MemoryBudget::Count(Kind kind) {
  switch (kind) {
    case Kind::kPayload:
      return payload_;
    case Kind::kPassed:
      return passed_;
    case Kind::kKept:
      return kept_;
    case Kind::kBookkeeping:
      break;
  }
  return bookkeeping_;
}

int64_t MemoryBudget::BeyondLimit() const {
  return std::max(limit_ / kBookkeepingShare, kLeastBookkeeping);
}

int64_t MemoryBudget::Excess(int64_t more) const {
  return std::max<int64_t>(0, bookkeeping_ + more - BeyondLimit());
}

int64_t MemoryBudget::Capacity() const { return limit_ - passed_ - kept_ - Excess(); }

int64_t MemoryBudget::Room() const { return Capacity() - payload_; }

int64_t MemoryBudget::LargestWaiting() const {
  return waiting_bytes_.empty() ? 0 : *waiting_bytes_.rbegin();
}

bool MemoryBudget::Fits(int64_t bytes, Kind kind) const {
  int64_t taken = bytes;
  if (kind == Kind::kBookkeeping) taken = Excess(bytes) - Excess();
  if (taken == 0) return true;
  if (taken > Room()) return false;
  return kind == Kind::kPayload || taken <= Capacity() - LargestWaiting();
}

std::optional<Reservation> MemoryBudget::TryReserve(int64_t bytes, MemoryUse use) {
  for (int attempt = 0; attempt < 2; ++attempt) {
    int64_t missing = 0;
    {
      MutexLock lock(&mutex_);
      const Kind kind = use == MemoryUse::kBookkeeping ? Kind::kBookkeeping
                        : use == MemoryUse::kKept      ? Kind::kKept
                        : waiters_.empty()             ? Kind::kPayload
                                                       : Kind::kPassed;
      if (Fits(bytes, kind)) {
        Count(kind) += bytes;
        return Reservation(shared_from_this(), nullptr, bytes, kind);
      }
      missing = bytes - Room();
      if (missing <= 0 || bytes > limit_) return std::nullopt;
    }
    if (attempt == 0) Reclaim(missing);
  }
  return std::nullopt;
}

absl::StatusOr<std::optional<Reservation>> MemoryBudget::TryReserve(int64_t bytes,
                                                                    const MemoryQuota& quota,
                                                                    MemoryUse use) {
  Reservation charge(nullptr, nullptr, bytes, Kind::kPayload);
  if (absl::Status status = charge.ChargeTo(quota); !status.ok()) return status;
  std::optional<Reservation> memory = TryReserve(bytes, use);
  if (memory) std::swap(memory->account_, charge.account_);
  return memory;
}

absl::StatusOr<Reservation> MemoryBudget::ReserveNow(int64_t bytes, const MemoryQuota& quota,
                                                     MemoryUse use, absl::string_view what) {
  absl::StatusOr<std::optional<Reservation>> memory = TryReserve(bytes, quota, use);
  if (!memory.ok()) return memory.status();
  if (!*memory) return Refusal(bytes, use, what);
  return **std::move(memory);
}

absl::Status MemoryBudget::Refusal(int64_t bytes, MemoryUse use, absl::string_view what) const {
  const bool never = bytes > limit_ + (use == MemoryUse::kBookkeeping ? BeyondLimit() : 0);
  const std::string message =
      absl::StrCat("no memory ", never ? "" : "now ", "for the ", bytes, " bytes of ", what,
                   "; the server has a memory budget of ", limit_);
  return never ? absl::ResourceExhaustedError(message) : ExhaustedFor(kRetryWait, message);
}

absl::StatusOr<MemoryBudget::Ticket> MemoryBudget::Reserve(int64_t bytes, const MemoryQuota& quota,
                                                           Granted granted) {
  Reservation charge(nullptr, nullptr, bytes, Kind::kPayload);
  if (absl::Status status = charge.ChargeTo(quota); !status.ok()) return status;
  Ticket ticket;
  int64_t missing = 0;
  {
    MutexLock lock(&mutex_);
    if (bytes > Capacity()) return Refusal(bytes, MemoryUse::kPayload, "tensors");
    ticket = next_ticket_++;
    waiting_bytes_.insert(bytes);
    waiters_.push_back({ticket, std::move(charge), std::move(granted)});
    for (const int64_t waiting : waiting_bytes_) missing += waiting;
    missing -= Room();
  }
  if (missing > 0) Reclaim(missing);
  Serve();
  return ticket;
}

bool MemoryBudget::Cancel(Ticket ticket) {
  Waiters cancelled;  // destroyed without the lock
  {
    MutexLock lock(&mutex_);
    const auto it = std::find_if(waiters_.begin(), waiters_.end(),
                                 [ticket](const Waiter& w) { return w.ticket == ticket; });
    if (it == waiters_.end()) return false;
    waiting_bytes_.erase(waiting_bytes_.find(it->memory.bytes()));
    cancelled.splice(cancelled.begin(), waiters_, it);
  }
  Serve();  // the next waiter may need less
  return true;
}

void MemoryBudget::Release(int64_t bytes, Kind kind) {
  {
    MutexLock lock(&mutex_);
    Count(kind) -= bytes;
    if (waiters_.empty()) return;
  }
  Serve();
}

void MemoryBudget::Serve() {
  Waiters served;
  {
    MutexLock lock(&mutex_);
    Kind kind = Kind::kPayload;
    for (auto it = waiters_.begin(); it != waiters_.end() && *waiting_bytes_.begin() <= Room();) {
      const auto waiter = it++;
      Reservation& memory = waiter->memory;
      waiting_bytes_.erase(
          waiting_bytes_.find(memory.bytes()));  // compare with the other waiters only
      if (!Fits(memory.bytes(), kind)) {
        waiting_bytes_.insert(memory.bytes());
        kind = Kind::kPassed;
        continue;
      }
      Count(kind) += memory.bytes();
      memory.budget_ = shared_from_this();
      memory.kind_ = kind;
      served.splice(served.end(), waiters_, waiter);
    }
  }
  for (Waiter& waiter : served) {
    auto memory = std::make_shared<Reservation>(std::move(waiter.memory));
    run_([granted = std::move(waiter.granted), memory] { granted(std::move(*memory)); });
  }
}

int64_t MemoryBudget::reserved() const {
  MutexLock lock(&mutex_);
  return payload_ + passed_ + kept_ + bookkeeping_;
}

int64_t MemoryBudget::waiting() const {
  MutexLock lock(&mutex_);
  return static_cast<int64_t>(waiters_.size());
}

}  // namespace nni_compression::server
