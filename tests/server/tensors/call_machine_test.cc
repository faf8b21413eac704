// Every order in which things can happen to a streaming call.
//
// A model of all that is around the machine (peer, transport, memory budget, session store, handler
// and its tasks) says which events are possible now and checks what the machine answers. The test
// visits every state that any sequence of events, of whatever length, comes to, within these
// bounds: four messages of the peer, three tasks at a time and four in all, three replies in the
// queue. That covers every interleaving of up to so many of each.
#include "server/tensors/call_machine.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <functional>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace nni_compression::server {
namespace {

using Processing = CallMachine::Processing;
using Reading = CallMachine::Reading;

constexpr int kMessages = 4;
constexpr int kTasksAtOnce = 3;
constexpr int kTasks = 4;
constexpr int64_t kReplies = 3;
constexpr int64_t kReplyBytes = 10;
// More than one reply in the queue is a backlog; one is held back for others.
constexpr CallMachine::Limits kLimits = {1, 100, 15};

// What is wrong with what the machine answered; empty: nothing.
class World {
 public:
  World() { Do(machine_.Start()); }

  const std::string& fault() const { return fault_; }

  auto State() const {
    return std::make_tuple(machine_.State(), messages_, tasks_begun_, short_tasks_, long_tasks_,
                           replies_, reading_, writing_, processing_, half_closed_, complete_,
                           memory_, session_, session_came_, receiver_holds_, finished_, done_,
                           ended_);
  }

  struct Event {
    std::string name;
    std::function<void(World&)> happen;
  };

  std::vector<Event> Possible() const {
    std::vector<Event> events;
    const auto add = [&](const char* name, void (World::*event)()) {
      events.push_back({name, [event](World& world) { (world.*event)(); }});
    };
    if (reading_) {
      if (messages_ < kMessages) add("message", &World::Message);
      add("half-close", &World::HalfClose);
    }
    if (processing_) {
      add("processing fails", &World::ProcessingFails);
      if (half_closed_) {
        add("half-close is processed", &World::HalfCloseIsProcessed);
      } else {
        add("message is processed", &World::MessageIsProcessed);
        add("memory is needed", &World::MemoryIsNeeded);
        if (!session_came_) add("session is needed", &World::SessionIsNeeded);
      }
    }
    const bool may_begin = tasks_begun_ < kTasks && short_tasks_ + long_tasks_ < kTasksAtOnce;
    if ((processing_ || short_tasks_ + long_tasks_ > 0) && !ended_) {
      if (may_begin) {
        add("short task begins", &World::ShortTaskBegins);
        add("long task begins", &World::LongTaskBegins);
      }
      if (replies_ < kReplies) add("reply is pushed", &World::ReplyIsPushed);
    }
    if (short_tasks_ > 0) {
      add("short task ends", &World::ShortTaskEnds);
      add("short task fails", &World::ShortTaskFails);
      if (replies_ < kReplies) add("short task replies", &World::ShortTaskReplies);
      if (half_closed_ && !processing_ && short_tasks_ + long_tasks_ == 1) {
        add("last task completes", &World::LastTaskCompletes);
      }
    }
    if (long_tasks_ > 0) {
      add("long task ends", &World::LongTaskEnds);
      if (replies_ < kReplies) add("long task replies", &World::LongTaskReplies);
    }
    if (memory_ != Asked::kNo) add("memory is granted", &World::MemoryIsGranted);
    if (session_ != Asked::kNo) add("session is loaded", &World::SessionIsLoaded);
    if (writing_) {
      add("write is done", &World::WriteIsDone);
      add("write fails", &World::WriteFails);
    }
    // A cancellation, a deadline or a shutdown; the transport says each in the same way.
    if (!done_) add("cancel", &World::Cancel);
    if (!done_ && (machine_.peer_has_to_read() || machine_.peer_has_to_send())) {
      add("stall", &World::Stall);
    }
    if (finished_ && !reading_ && !writing_ && !done_) add("done", &World::Done);
    return events;
  }

  // Whether anybody but the peer's impatience can move the call on.
  bool WaitsForSomebody() const {
    return reading_ || writing_ || processing_ || memory_ == Asked::kYes ||
           session_ == Asked::kYes || short_tasks_ + long_tasks_ > 0 || finished_;
  }

  bool ended() const { return ended_; }
  bool half_closed() const { return half_closed_; }

 private:
  // kLate: nobody waits any more, but it was under way already.
  enum class Asked { kNo, kYes, kLate };

  void Check(bool right, const char* what) {
    if (!right && fault_.empty()) fault_ = what;
  }

  CallMachine::Queue queue() const {
    return {replies_, replies_ * kReplyBytes, replies_ * kReplyBytes};
  }

  void Do(CallActions actions) {
    if (actions.has(CallActions::kDropReplies)) replies_ = 0;
    if (actions.has(CallActions::kDropMemory)) {
      Check(memory_ == Asked::kYes, "memory is dropped that nobody asked for");
      memory_ = Asked::kLate;
    }
    if (actions.has(CallActions::kDropReceived)) {
      Check(!processing_, "what is being processed is dropped");
      receiver_holds_ = false;
    }
    while (actions.has(CallActions::kTakeReplies)) {
      Check(replies_ > 0, "a message is made of nothing");
      replies_ = 0;  // all fit
      actions = CallActions(actions.bits() & ~CallActions::kTakeReplies) | machine_.Taken(queue());
    }
    const bool finishes =
        actions.has(CallActions::kFinish) || actions.has(CallActions::kWriteAndFinish);
    if (actions.has(CallActions::kStartWrite) || finishes) {
      Check(!writing_, "two writes at a time");
      Check(!finished_, "written or finished after the end");
      Check(!done_, "the transport is used after its last word");
    }
    if (actions.has(CallActions::kFinish)) Check(replies_ == 0, "finished before all was written");
    if (actions.has(CallActions::kDrained)) Check(replies_ == 0 && !writing_, "drained too early");
    if (actions.has(CallActions::kStartWrite)) writing_ = true;
    if (finishes) finished_ = true;
    if (actions.has(CallActions::kTearDown)) Check(!done_, "torn down after the last word");
    if (actions.has(CallActions::kStartRead)) {
      Check(!reading_, "two reads at a time");
      Check(!processing_, "read while it processes");
      Check(!finished_ && !done_, "read after the end");
      Check(replies_ <= kLimits.replies, "read while replies wait");
      Check(memory_ != Asked::kYes && session_ != Asked::kYes, "read while it waits");
      reading_ = true;
    }
    if (actions.has(CallActions::kProcess)) {
      Check(!processing_, "processed by two at a time");
      Check(!ended_, "a hook after the end");
      processing_ = true;
      receiver_holds_ = true;
    }
    if (actions.has(CallActions::kAskMemory)) {
      Check(memory_ != Asked::kYes, "memory is asked for twice");
      memory_ = Asked::kYes;
    }
    if (actions.has(CallActions::kAskSession)) {
      Check(session_ == Asked::kNo, "the session is asked for twice");
      session_ = Asked::kYes;
    }
    if (actions.has(CallActions::kEnd)) {
      Check(!ended_, "ended twice");
      Check(done_, "ended before the transport");
      Check(!processing_, "ended while it processes");
      Check(short_tasks_ + long_tasks_ == 0, "ended while there are tasks");
      Check(!receiver_holds_, "ended with memory");
      Check(replies_ == 0, "ended with replies");
      Check(memory_ != Asked::kYes, "ended while it waits for memory");
      ended_ = true;
    }
    if (done_ && !processing_ && short_tasks_ + long_tasks_ == 0) Check(ended_, "never ends");
    // The session may still be on its way: nobody waits for it then.
    if (session_ == Asked::kYes && machine_.reading() != Reading::kSession) session_ = Asked::kLate;
  }

  void Message() {
    reading_ = false;
    ++messages_;
    Do(machine_.ReadDone());
  }
  void HalfClose() {
    reading_ = false;
    half_closed_ = true;
    Do(machine_.ReadDone());
  }
  void Process(Processing result) {
    processing_ = false;
    Do(machine_.Processed(result));
  }
  void ProcessingFails() { Process(Processing::kFailed); }
  void HalfCloseIsProcessed() { Process(Processing::kHalfClosed); }
  void MessageIsProcessed() { Process(Processing::kMessageDone); }
  void MemoryIsNeeded() { Process(Processing::kNeedsMemory); }
  void SessionIsNeeded() {
    session_came_ = true;
    Process(Processing::kNeedsSession);
  }
  void MemoryIsGranted() {
    memory_ = Asked::kNo;
    Do(machine_.Granted());
  }
  void SessionIsLoaded() {
    session_ = Asked::kNo;
    Do(machine_.Loaded());
  }
  void ShortTaskBegins() {
    ++tasks_begun_;
    ++short_tasks_;
    Do(machine_.TaskBegun(false));
  }
  void LongTaskBegins() {
    ++tasks_begun_;
    ++long_tasks_;
    Do(machine_.TaskBegun(true));
  }
  void ReplyIsPushed() {
    if (!machine_.failed()) ++replies_;
    Do(machine_.Pushed(queue()));
  }
  void EndTask(bool is_long, bool replies, bool completes) {
    --(is_long ? long_tasks_ : short_tasks_);
    if (replies && !machine_.failed()) ++replies_;
    if (completes) complete_ = true;
    Do(machine_.TaskDone(is_long, queue(), completes));
  }
  void ShortTaskEnds() { EndTask(false, false, false); }
  void ShortTaskReplies() { EndTask(false, true, false); }
  void LastTaskCompletes() { EndTask(false, true, true); }
  void LongTaskEnds() { EndTask(true, false, false); }
  void LongTaskReplies() { EndTask(true, true, false); }
  void ShortTaskFails() {
    const CallActions failed = machine_.Fail();
    --short_tasks_;
    Do(failed | machine_.TaskDone(false, queue(), false));
  }
  void WriteIsDone() {
    writing_ = false;
    Do(machine_.WriteDone());
  }
  void WriteFails() {
    writing_ = false;
    const CallActions failed = machine_.Fail();
    Do(failed | machine_.WriteDone());
  }
  void Cancel() { Do(machine_.Fail()); }
  void Stall() { Do(machine_.Stall()); }
  void Done() {
    done_ = true;
    Do(machine_.Done());
  }

  CallMachine machine_{kLimits};
  std::string fault_;
  int messages_ = 0;
  int tasks_begun_ = 0;
  int short_tasks_ = 0;
  int long_tasks_ = 0;
  int64_t replies_ = 0;
  bool reading_ = false;
  bool writing_ = false;
  bool processing_ = false;
  bool half_closed_ = false;
  bool complete_ = false;
  Asked memory_ = Asked::kNo;
  Asked session_ = Asked::kNo;
  bool session_came_ = false;
  bool receiver_holds_ = false;
  bool finished_ = false;
  bool done_ = false;
  bool ended_ = false;
};

TEST(CallMachineTest, HoldsItsPromisesInWhateverOrderThingsHappen) {
  struct Visited {
    World world;
    size_t from;  // index of the state before
    std::string event;
  };
  std::vector<Visited> visited = {{World(), 0, "start"}};
  std::set<decltype(World().State())> states = {visited[0].world.State()};
  const auto history = [&](size_t i) {
    std::string text;
    for (; i > 0; i = visited[i].from) text = " -> " + visited[i].event + text;
    return text;
  };
  size_t ends = 0;
  for (size_t i = 0; i < visited.size(); ++i) {
    const World world = visited[i].world;
    ASSERT_EQ(world.fault(), "") << history(i);
    ends += world.ended() ? 1 : 0;
    const bool waits = world.WaitsForSomebody() || world.ended();
    // A handler that begins no task at the half-close never completes, which is not the machine's
    // fault.
    ASSERT_TRUE(waits || world.half_closed()) << "nothing moves it on:" << history(i);
    for (const World::Event& event : world.Possible()) {
      World next = world;
      event.happen(next);
      if (!next.fault().empty() || states.insert(next.State()).second) {
        visited.push_back({next, i, event.name});
      }
    }
  }
  EXPECT_GT(ends, 0u);
  RecordProperty("states", static_cast<int>(states.size()));
}

}  // namespace
}  // namespace nni_compression::server
