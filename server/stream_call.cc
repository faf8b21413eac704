#include "server/stream_call.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/status.h"

namespace nni_compression::server {
namespace {

// Replies of fewer bytes wait for one another.
constexpr int64_t kHeldBytes = 64 << 10;

}  // namespace

StreamCall::StreamCall(const Environment& environment)
    : environment_(environment),
      receiver_(this, environment.budget, environment.share, environment.uploads) {}

void StreamCall::Start(StreamTransport* transport) {
  MutexLock lock(&mutex_);
  transport_ = transport;
  Progressed();
  ArmTimer();
  StartRead();
}

void StreamCall::OnReadDone(bool ok) {
  {
    MutexLock lock(&mutex_);
    Progressed();
    if (const absl::Status status = CheckRate(); !status.ok()) FailLocked(status);
    if (failed()) {
      reading_ = Reading::kDone;
      incoming_.Clear();
      return;
    }
    reading_ = Reading::kProcessing;
  }
  if (ok) {
    grpc::ByteBuffer message;
    message.Swap(&incoming_);
    if (!std::exchange(prepared_, true)) {
      const auto resume = [self = shared_from_this(), message](const absl::Status& status) {
        if (!status.ok() || self->failed()) {
          return self->Process(status.ok() ? absl::CancelledError("over") : status);
        }
        self->Process(self->receiver_.Receive(message));
      };
      if (Prepare(message, resume)) return;
    }
    Process(receiver_.Receive(message));
    return;
  }
  // The end of the stream, whatever ended it; a cancellation is not always told apart.
  absl::Status status = cancelled() ? absl::CancelledError("cancelled") : receiver_.Finish();
  if (status.ok()) status = OnHalfClose();
  {
    MutexLock lock(&mutex_);
    reading_ = Reading::kDone;
    receiver_.Reset();
  }
  if (!status.ok()) Fail(status);
}

void StreamCall::Process(absl::StatusOr<TensorReceiver::Progress> progress) {
  MutexLock lock(&mutex_);
  Progressed();
  if (!progress.ok()) FailLocked(progress.status());
  if (failed()) {
    reading_ = Reading::kDone;
    receiver_.Reset();
    return;
  }
  if (*progress == TensorReceiver::Progress::kNeedsMemory) {
    reading_ = Reading::kNeedsMemory;
    ticket_ = environment_.budget->Reserve(
        receiver_.bytes_needed(),
        [self = shared_from_this()](Reservation memory) { self->OnMemory(std::move(memory)); });
    return;
  }
  StartRead();
}

void StreamCall::OnMemory(Reservation memory) {
  {
    MutexLock lock(&mutex_);
    if (failed()) return;
    reading_ = Reading::kProcessing;
  }
  Process(receiver_.Resume(std::move(memory)));
}

void StreamCall::OnWriteDone(bool ok) {
  {
    MutexLock lock(&mutex_);
    Progressed();
    writing_ = false;
    outgoing_.Clear();
    if (!ok) FailLocked(absl::CancelledError("the peer is gone"));
  }
  Advance();
}

void StreamCall::OnCancel() {
  Fail(absl::CancelledError("cancelled by the peer, or its deadline passed"));
}

void StreamCall::OnDone() {
  {
    MutexLock lock(&mutex_);
    FailLocked(absl::CancelledError("over"));  // for tasks that are left; too late for the peer
    transport_ = nullptr;
    incoming_.Clear();
    outgoing_.Clear();
    if (timer_) environment_.timers->Cancel(*timer_);
  }
  OnEnd();
}

bool StreamCall::cancelled() const {
  MutexLock lock(&mutex_);
  return transport_ == nullptr || transport_->cancelled();
}

void StreamCall::BeginTask(Work work) {
  MutexLock lock(&mutex_);
  ++tasks_;
  if (work == Work::kLong) ++long_tasks_;
}

void StreamCall::Run(Strand& strand, std::function<absl::Status()> task, Work work) {
  BeginTask(work);
  strand.Post(
      [self = shared_from_this(), task = std::move(task), work]() mutable {
        absl::Status status;
        if (!self->failed()) status = CatchExceptions(task);
        task = nullptr;  // with the memory that it held, before the call can end
        self->EndTask(work, status);
      },
      work);
}

void StreamCall::EndTask(Work work, const absl::Status& status) {
  {
    MutexLock lock(&mutex_);
    --tasks_;
    if (work == Work::kLong) --long_tasks_;
    Progressed();
    if (!status.ok()) FailLocked(status);
  }
  Advance();
}

void StreamCall::Push(Reply reply) {
  {
    MutexLock lock(&mutex_);
    if (failed()) return;
    replies_.Push(std::move(reply));
  }
  Advance();
}

void StreamCall::Complete() {
  {
    MutexLock lock(&mutex_);
    if (!outcome_) outcome_ = absl::OkStatus();
  }
  Advance();
}

void StreamCall::CompleteWith(const grpc::ByteBuffer& response) {
  {
    MutexLock lock(&mutex_);
    if (!outcome_ && transport_ != nullptr) transport_->SetResponse(response);
  }
  Complete();
}

void StreamCall::Fail(const absl::Status& status) {
  {
    MutexLock lock(&mutex_);
    FailLocked(status);
  }
  Advance();
}

void StreamCall::FailLocked(const absl::Status& status) {
  if (failed_.exchange(true, std::memory_order_acq_rel)) return;
  outcome_ = status;
  replies_.Clear();
  if (reading_ == Reading::kNeedsMemory) environment_.budget->Cancel(ticket_);
  // Nobody uses the receiver but who is processing, and that thread will see the failure.
  if (reading_ != Reading::kProcessing) receiver_.Reset();
  AdvanceLocked();
}

void StreamCall::Advance() {
  bool drained = false;
  {
    MutexLock lock(&mutex_);
    drained = AdvanceLocked();
  }
  if (drained) OnDrained();
}

bool StreamCall::AdvanceLocked() {
  if (transport_ == nullptr || finished_ || writing_) return false;
  if (!replies_.empty()) {
    const bool more_soon = tasks_ > 0 && long_tasks_ == 0 && !outcome_;
    if (more_soon && replies_.payload_bytes() < kHeldBytes) return false;
    outgoing_ = replies_.NextMessage();
    if (outcome_ && replies_.empty()) {
      finished_ = true;
      transport_->WriteAndFinish(&outgoing_, *outcome_);
      return false;
    }
    writing_ = true;
    transport_->StartWrite(&outgoing_);
    return false;
  }
  if (!outcome_) return true;
  finished_ = true;
  transport_->Finish(*outcome_);
  return false;
}

void StreamCall::StartRead() {
  reading_ = Reading::kStarted;
  read_started_ = environment_.timers->clock()->Now();
  transport_->StartRead(&incoming_);
}

absl::Status StreamCall::CheckRate() {
  if (!receiver_.holds_memory()) {  // a pause between tensors costs nobody anything
    awaited_ = absl::ZeroDuration();
    came_ = 0;
    return absl::OkStatus();
  }
  awaited_ += std::max(environment_.timers->clock()->Now() - read_started_, absl::ZeroDuration());
  came_ += static_cast<int64_t>(incoming_.Length());
  if (awaited_ < environment_.stall_timeout) return absl::OkStatus();
  const absl::Duration awaited = std::exchange(awaited_, absl::ZeroDuration());
  const int64_t came = std::exchange(came_, 0);
  const double least = static_cast<double>(environment_.min_upload_rate);
  if (static_cast<double>(came) >= least * absl::ToDoubleSeconds(awaited)) return absl::OkStatus();
  return absl::DeadlineExceededError(
      absl::StrCat("the peer sent ", came, " bytes in ", absl::FormatDuration(awaited),
                   "; it must be at least ", environment_.min_upload_rate, " a second"));
}

void StreamCall::Progressed() { last_progress_ = environment_.timers->clock()->Now(); }

void StreamCall::ArmTimer() {
  timer_ = environment_.timers->RunAt(last_progress_ + environment_.stall_timeout,
                                      [weak = weak_from_this()] {
                                        if (const auto self = weak.lock()) self->OnTimer();
                                      });
}

void StreamCall::OnTimer() {
  MutexLock lock(&mutex_);
  if (transport_ == nullptr) return;
  const absl::Time now = environment_.timers->clock()->Now();
  const bool peers_turn = writing_ || finished_ || (reading_ == Reading::kStarted && tasks_ == 0);
  if (!peers_turn) {
    last_progress_ = now;
  } else if (now - last_progress_ >= environment_.stall_timeout) {
    const bool stuck = writing_ || finished_;  // a status would not get through
    FailLocked(absl::DeadlineExceededError(absl::StrCat(
        "the peer neither sent nor read for ", absl::FormatDuration(environment_.stall_timeout))));
    if (stuck) transport_->Cancel();
    last_progress_ = now;
  }
  ArmTimer();
}

}  // namespace nni_compression::server
