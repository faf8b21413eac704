// The state machine of a streaming call, without transport, threads and time.
#ifndef NNI_COMPRESSION_SERVER_TENSORS_CALL_MACHINE_H_
#define NNI_COMPRESSION_SERVER_TENSORS_CALL_MACHINE_H_

#include <cstdint>
#include <tuple>

namespace nni_compression::server {

// Actions for a StreamCall, as a set.
class CallActions {
 public:
  enum Action : uint32_t {
    kStartRead = 1 << 0,
    kProcess = 1 << 1,      // process the message, or continue with it; ends with Processed
    kAskMemory = 1 << 2,    // ends with Granted, or DropMemory
    kDropMemory = 1 << 3,   // cancel the request for memory
    kAskSession = 1 << 4,   // ends with Loaded
    kTakeReplies = 1 << 5,  // build the next message of the replies; ends with Taken
    kStartWrite = 1 << 6,   // write that message
    kWriteAndFinish = 1 << 7,
    kFinish = 1 << 8,
    kDropReceived = 1 << 9,  // free received data that was not delivered
    kDropReplies = 1 << 10,
    kDrained = 1 << 11,   // nothing is queued or being written
    kTearDown = 1 << 12,  // cancel: a status could not be sent
    kEnd = 1 << 13,       // the call's handler is not used any more
  };

  CallActions(uint32_t actions = 0) : actions_(actions) {}  // NOLINT(google-explicit-constructor)
  CallActions& operator|=(CallActions other) {
    actions_ |= other.actions_;
    return *this;
  }
  friend CallActions operator|(CallActions a, CallActions b) { return a |= b; }
  bool has(Action action) const { return (actions_ & action) != 0; }
  uint32_t bits() const { return actions_; }

 private:
  uint32_t actions_;
};

// One method per event; each returns the actions to perform now. The reading side has the states
// below; the writing side either writes or does not. Thread-compatible: a StreamCall calls it with
// its mutex held, in the order of the events.
//
//            Start        ReadDone           Processed(kNeedsMemory)
//   kIdle ---------> kReading ----> kProcessing -------------------> kMemory
//                       ^              |  ^  |  ^      Granted          |
//                       |   Processed  |  |  |  +-----------------------+
//                       +--------------+  |  |  Processed(kNeedsSession)
//                       ^              |  |  +---------------------> kSession
//     replies were taken|              |  |            Loaded           |
//                       |              |  +-----------------------------+
//                    kBacklog <--------+ too many replies wait
//
//   kClosed: after the half-close was processed, or a failure
class CallMachine {
 public:
  enum class Reading { kIdle, kReading, kProcessing, kMemory, kSession, kBacklog, kClosed };

  // How processing ended.
  enum class Processing { kMessageDone, kNeedsMemory, kNeedsSession, kHalfClosed, kFailed };

  // The queued replies.
  struct Queue {
    int64_t replies = 0;
    int64_t payload_bytes = 0;
    int64_t bytes = 0;  // payloads and bookkeeping
  };

  struct Limits {
    // Backpressure: nothing is read while more replies are queued.
    int64_t replies = 4096;
    int64_t bytes = 64 << 20;
    // Fewer payload bytes than this wait for the running short tasks, so that many small layers are
    // answered in one message.
    int64_t held_bytes = 64 << 10;
  };

  CallMachine() = default;
  explicit CallMachine(const Limits& limits) : limits_(limits) {}

  // Events of the transport.
  CallActions Start();
  CallActions ReadDone();
  CallActions WriteDone();
  CallActions Done();  // it has ended and must not be used any more

  // Completions of requested actions.
  CallActions Processed(Processing result);
  CallActions Granted();
  CallActions Loaded();
  CallActions Taken(const Queue& left);

  // Events of tasks. `complete`: no reply follows those in the queue.
  CallActions TaskBegun(bool is_long);
  CallActions TaskDone(bool is_long, const Queue& queue, bool complete);
  CallActions Pushed(const Queue& queue);

  // The call fails: an error, a cancellation, a deadline, a shutdown.
  CallActions Fail();
  // The peer stalls.
  CallActions Stall();

  // The whole state, for tests that visit every state.
  auto State() const {
    return std::make_tuple(reading_, queue_.replies, queue_.payload_bytes, queue_.bytes, writing_,
                           tasks_, long_tasks_, complete_, failed_, finished_, done_, ended_);
  }

  Reading reading() const { return reading_; }
  bool failed() const { return failed_; }
  bool done() const { return done_; }
  bool ended() const { return ended_; }
  // The party that has to act next.
  bool peer_has_to_read() const { return writing_ || finished_; }
  bool peer_has_to_send() const { return reading_ == Reading::kReading && tasks_ == 0; }

 private:
  CallActions StopReading();
  CallActions ReadOn();
  CallActions Write();
  CallActions EndIfOver();
  bool backlog() const { return queue_.replies > limits_.replies || queue_.bytes > limits_.bytes; }

  Limits limits_;
  Reading reading_ = Reading::kIdle;
  Queue queue_;
  bool writing_ = false;
  int tasks_ = 0;
  int long_tasks_ = 0;     // of tasks_
  bool complete_ = false;  // no reply follows the queued ones
  bool failed_ = false;
  bool finished_ = false;  // the transport was finished
  bool done_ = false;
  bool ended_ = false;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_TENSORS_CALL_MACHINE_H_
