#include "server/tensors/stream_call.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace nni_compression::server {

void StreamCall::Follow(CallActions actions) {
  if (actions.has(CallActions::kProcess)) Process();
  if (actions.has(CallActions::kAskSession)) {
    std::exchange(loader_, nullptr)(
        [self = shared_from_this()](const absl::Status& status) { self->OnSession(status); });
  }
  if (actions.has(CallActions::kEnd)) handler_->OnEnd();
}

CallActions StreamCall::Perform(CallActions actions) {
  if (actions.has(CallActions::kDropReplies)) {
    replies_.Clear();
    when_drained_ = nullptr;
  }
  if (actions.has(CallActions::kDropMemory)) environment_.budget->Cancel(ticket_);
  if (actions.has(CallActions::kDropReceived)) {
    receiver_->Reset();
    granted_.reset();
  }
  while (actions.has(CallActions::kTakeReplies)) {
    outgoing_ = replies_.NextMessage();
    actions = CallActions(actions.bits() & ~CallActions::kTakeReplies) | machine_.Taken(queue());
  }
  if (actions.has(CallActions::kStartWrite) || actions.has(CallActions::kWriteAndFinish) ||
      actions.has(CallActions::kFinish)) {
    write_started_ = environment_.timers->clock()->Now();
  }
  if (actions.has(CallActions::kStartWrite)) transport_->StartWrite(&outgoing_);
  if (actions.has(CallActions::kWriteAndFinish)) transport_->WriteAndFinish(&outgoing_, outcome_);
  if (actions.has(CallActions::kFinish)) transport_->Finish(outcome_);
  if (actions.has(CallActions::kTearDown)) transport_->Cancel();
  if (actions.has(CallActions::kStartRead)) {
    read_started_ = environment_.timers->clock()->Now();
    transport_->StartRead(&incoming_);
  }
  if (actions.has(CallActions::kAskMemory)) actions |= AskMemory();
  if (actions.has(CallActions::kDrained) && when_drained_ != nullptr) {
    machine_.TaskBegun(/*is_long=*/false);
    std::exchange(when_drained_, nullptr)();
  }
  return actions;
}

CallActions StreamCall::AskMemory() {
  const absl::StatusOr<MemoryBudget::Ticket> ticket = environment_.budget->Reserve(
      receiver_->bytes_needed(), environment_.memory_quota,
      [self = shared_from_this()](Reservation memory) { self->OnMemory(std::move(memory)); });
  if (!ticket.ok()) return Perform(FailWith(ticket.status()));
  ticket_ = *ticket;
  return {};
}

CallActions StreamCall::FailWith(const absl::Status& status) {
  if (!failed_.exchange(true, std::memory_order_acq_rel)) outcome_ = status;
  return machine_.Fail();
}

CallMachine::Queue StreamCall::queue() const {
  return {replies_.size(), replies_.payload_bytes(), replies_.bytes()};
}

void StreamCall::Start(StreamTransport* transport) {
  MutexLock lock(&mutex_);
  transport_ = transport;
  Progressed();
  ArmTimer();
  Perform(machine_.Start());
}

void StreamCall::OnReadDone(bool ok) {
  CallActions actions;
  {
    MutexLock lock(&mutex_);
    Progressed();
    if (const absl::Status status = CheckRate(); !status.ok()) actions = FailWith(status);
    actions |= machine_.ReadDone();
    if (actions.has(CallActions::kProcess)) {
      input_ = ok ? Input::kMessage : Input::kHalfClose;
      message_.Swap(&incoming_);
    }
    incoming_.Clear();
    actions = Perform(actions);
  }
  Follow(actions);
}

void StreamCall::OnMemory(Reservation memory) {
  CallActions actions;
  {
    MutexLock lock(&mutex_);
    actions = machine_.Granted();
    if (!actions.has(CallActions::kProcess)) return;
    input_ = Input::kMemory;
    granted_ = std::move(memory);
  }
  Follow(actions);
}

void StreamCall::OnSession(const absl::Status& status) {
  CallActions actions;
  {
    MutexLock lock(&mutex_);
    actions = machine_.Loaded();
    if (!actions.has(CallActions::kProcess)) return;
    input_ = Input::kSession;
    session_status_ = status;
  }
  Follow(actions);
}

void StreamCall::Process() {
  const auto result = CatchExceptions([this] { return ProcessInput(input_); });
  CallActions actions;
  {
    MutexLock lock(&mutex_);
    Progressed();
    if (!result.ok()) actions = FailWith(result.status());
    actions |= machine_.Processed(result.ok() ? *result : CallMachine::Processing::kFailed);
    actions = Perform(actions);
  }
  Follow(actions);
}

absl::StatusOr<CallMachine::Processing> StreamCall::ProcessInput(Input input) {
  absl::StatusOr<TensorReceiver::Progress> progress = TensorReceiver::Progress::kDone;
  if (input == Input::kHalfClose) {
    // The end of the stream: a half-close or a cancellation, which look alike here.
    if (cancelled()) return absl::CancelledError("cancelled");
    if (absl::Status status = receiver_->Finish(); !status.ok()) return status;
    if (absl::Status status = handler_->OnHalfClose(); !status.ok()) return status;
    return CallMachine::Processing::kHalfClosed;
  }
  if (input == Input::kMessage) {
    grpc::ByteBuffer message;
    message.Swap(&message_);
    progress = receiver_->Receive(message);
  } else if (input == Input::kMemory) {
    progress = receiver_->Resume(*std::exchange(granted_, std::nullopt));
  } else {
    if (!session_status_.ok()) return session_status_;
    progress = receiver_->Ready();
  }
  if (!progress.ok()) return progress.status();
  if (*progress == TensorReceiver::Progress::kNeedsMemory) {
    return CallMachine::Processing::kNeedsMemory;
  }
  if (*progress == TensorReceiver::Progress::kDone) return CallMachine::Processing::kMessageDone;
  loader_ = handler_->MakeLoader();
  return CallMachine::Processing::kNeedsSession;
}

void StreamCall::OnWriteDone(bool ok) {
  MutexLock lock(&mutex_);
  Progressed();
  outgoing_.Clear();
  CallActions actions;
  if (!ok) actions = FailWith(absl::CancelledError("the connection to the peer was lost"));
  Perform(actions | machine_.WriteDone());
}

void StreamCall::OnCancel() {
  MutexLock lock(&mutex_);
  Perform(FailWith(absl::CancelledError("cancelled by the peer, or its deadline passed")));
}

void StreamCall::OnDone() {
  CallActions actions;
  {
    MutexLock lock(&mutex_);
    if (!failed_.exchange(true, std::memory_order_acq_rel)) outcome_ = absl::CancelledError("over");
    transport_ = nullptr;
    incoming_.Clear();
    outgoing_.Clear();
    if (timer_) environment_.timers->Cancel(*timer_);
    actions = Perform(machine_.Done());
  }
  Follow(actions);
}

bool StreamCall::cancelled() const {
  MutexLock lock(&mutex_);
  return transport_ == nullptr || transport_->cancelled();
}

void StreamCall::BeginTask(Work work) {
  MutexLock lock(&mutex_);
  machine_.TaskBegun(work == Work::kLong);
}

void StreamCall::EndTask(Work work, absl::StatusOr<Reply> reply) {
  CallActions actions;
  {
    MutexLock lock(&mutex_);
    Progressed();
    if (!reply.ok()) actions = FailWith(reply.status());
    const bool last = reply.ok() && reply->last;
    if (!failed() && !reply->empty()) replies_.Push(*std::move(reply));
    actions = Perform(actions | machine_.TaskDone(work == Work::kLong, queue(), last));
  }
  Follow(actions);
}

void StreamCall::Push(Reply reply) {
  if (reply.empty()) return;
  MutexLock lock(&mutex_);
  if (failed()) return;
  replies_.Push(std::move(reply));
  Perform(machine_.Pushed(queue()));
}

void StreamCall::WhenDrained(std::function<void()> post) {
  MutexLock lock(&mutex_);
  if (!failed()) when_drained_ = std::move(post);
}

absl::Status StreamCall::CheckRate() {
  if (!receiver_->holds_memory()) {  // a pause between tensors holds no memory
    awaited_ = absl::ZeroDuration();
    received_ = 0;
    return absl::OkStatus();
  }
  awaited_ += std::max(environment_.timers->clock()->Now() - read_started_, absl::ZeroDuration());
  received_ += static_cast<int64_t>(incoming_.Length());
  if (awaited_ < environment_.stall_timeout) return absl::OkStatus();
  const absl::Duration awaited = std::exchange(awaited_, absl::ZeroDuration());
  const int64_t received = std::exchange(received_, 0);
  const double least = static_cast<double>(environment_.min_upload_rate);
  if (static_cast<double>(received) >= least * absl::ToDoubleSeconds(awaited)) {
    return absl::OkStatus();
  }
  return absl::DeadlineExceededError(
      absl::StrCat("the peer sent ", received, " bytes in ", absl::FormatDuration(awaited),
                   "; it must send at least ", environment_.min_upload_rate, " per second"));
}

void StreamCall::Progressed() { last_progress_ = environment_.timers->clock()->Now(); }

void StreamCall::ArmTimer() {
  const absl::Time since = machine_.peer_has_to_read() ? write_started_ : last_progress_;
  timer_ = environment_.timers->RunAt(
      since + environment_.stall_timeout,
      [weak = weak_from_this(), executor = environment_.executor] {
        if (auto self = weak.lock()) {
          executor->Schedule([self = std::move(self)] { self->OnTimer(); });
        }
      });
}

void StreamCall::OnTimer() {
  MutexLock lock(&mutex_);
  if (transport_ == nullptr) return;
  const absl::Time now = environment_.timers->clock()->Now();
  if (!machine_.peer_has_to_read() && !machine_.peer_has_to_send()) last_progress_ = now;
  // A peer that sends but does not read makes no progress.
  const absl::Time since = machine_.peer_has_to_read() ? write_started_ : last_progress_;
  if (now - since >= environment_.stall_timeout) {
    if (!failed_.exchange(true, std::memory_order_acq_rel)) {
      outcome_ = absl::DeadlineExceededError(absl::StrCat(
          "the peer neither sent nor read for ", absl::FormatDuration(environment_.stall_timeout)));
    }
    Perform(machine_.Stall());
    last_progress_ = write_started_ = now;
  }
  ArmTimer();
}

}  // namespace nni_compression::server
