#include "server/tensors/call_machine.h"

namespace nni_compression::server {

CallActions CallMachine::Start() {
  reading_ = Reading::kReading;
  return CallActions::kStartRead;
}

CallActions CallMachine::ReadDone() {
  if (failed_) return StopReading();
  reading_ = Reading::kProcessing;
  return CallActions::kProcess;
}

CallActions CallMachine::Processed(Processing result) {
  reading_ = Reading::kReading;  // processing has ended
  CallActions actions;
  if (result == Processing::kFailed) actions |= Fail();
  if (failed_ || result == Processing::kHalfClosed) return actions | StopReading() | EndIfOver();
  if (result == Processing::kNeedsMemory) {
    reading_ = Reading::kMemory;
    return CallActions::kAskMemory;
  }
  if (result == Processing::kNeedsSession) {
    reading_ = Reading::kSession;
    return CallActions::kAskSession;
  }
  reading_ = Reading::kBacklog;
  return ReadOn();
}

CallActions CallMachine::Granted() {
  if (reading_ != Reading::kMemory) return {};
  reading_ = Reading::kProcessing;
  return CallActions::kProcess;
}

CallActions CallMachine::Loaded() {
  if (reading_ != Reading::kSession) return {};
  reading_ = Reading::kProcessing;
  return CallActions::kProcess;
}

CallActions CallMachine::Pushed(const Queue& queue) {
  if (failed_) return {};
  queue_ = queue;
  return Write();
}

CallActions CallMachine::Taken(const Queue& left) {
  queue_ = left;
  if (complete_ && left.replies == 0) {
    finished_ = true;
    return CallActions::kWriteAndFinish;
  }
  writing_ = true;
  return CallActions(CallActions::kStartWrite) | ReadOn();
}

CallActions CallMachine::WriteDone() {
  writing_ = false;
  return Write();
}

CallActions CallMachine::TaskBegun(bool is_long) {
  ++tasks_;
  if (is_long) ++long_tasks_;
  return {};
}

CallActions CallMachine::TaskDone(bool is_long, const Queue& queue, bool complete) {
  --tasks_;
  if (is_long) --long_tasks_;
  if (!failed_) {
    queue_ = queue;
    if (complete) complete_ = true;
  }
  return Write() | EndIfOver();
}

CallActions CallMachine::Fail() {
  if (failed_) return {};
  failed_ = true;
  queue_ = {};
  CallActions actions = CallActions::kDropReplies;
  if (reading_ == Reading::kMemory) actions |= CallActions::kDropMemory;
  switch (reading_) {
    case Reading::kProcessing:  // the processing thread will see the failure; no other thread may
                                // touch its data
      break;
    case Reading::kReading:  // the transport still has to complete the read
      actions |= CallActions::kDropReceived;
      break;
    default:
      actions |= StopReading();
  }
  return actions | Write();
}

CallActions CallMachine::Stall() {
  const bool stuck = peer_has_to_read();
  CallActions actions = Fail();
  if (stuck && !done_) actions |= CallActions::kTearDown;
  return actions;
}

CallActions CallMachine::Done() {
  done_ = true;
  CallActions actions = Fail();  // for the remaining tasks; too late for the peer
  if (reading_ != Reading::kProcessing) actions |= StopReading();
  return actions | EndIfOver();
}

CallActions CallMachine::StopReading() {
  reading_ = Reading::kClosed;
  return CallActions::kDropReceived;
}

CallActions CallMachine::ReadOn() {
  if (reading_ != Reading::kBacklog || backlog()) return {};
  reading_ = Reading::kReading;
  return CallActions::kStartRead;
}

CallActions CallMachine::Write() {
  if (done_ || finished_ || writing_) return {};
  if (queue_.replies > 0) {
    const bool more_soon = tasks_ > 0 && long_tasks_ == 0 && !complete_ && !backlog();
    if (more_soon && queue_.payload_bytes < limits_.held_bytes) return {};
    return CallActions::kTakeReplies;
  }
  if (!failed_ && !complete_) return CallActions::kDrained;
  finished_ = true;
  return CallActions::kFinish;
}

CallActions CallMachine::EndIfOver() {
  if (!done_ || ended_ || reading_ == Reading::kProcessing || tasks_ > 0) return {};
  ended_ = true;
  return CallActions::kEnd;
}

}  // namespace nni_compression::server
