// A streaming call: its transport, its replies, its tasks and its time.
#ifndef NNI_COMPRESSION_SERVER_TENSORS_STREAM_CALL_H_
#define NNI_COMPRESSION_SERVER_TENSORS_STREAM_CALL_H_

#include <grpcpp/support/byte_buffer.h>

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/base/errors.h"
#include "server/base/executor.h"
#include "server/base/mutex.h"
#include "server/base/strand.h"
#include "server/base/timer_thread.h"
#include "server/limits/memory_budget.h"
#include "server/tensors/call_machine.h"
#include "server/tensors/reply_queue.h"
#include "server/tensors/tensor_receiver.h"

namespace nni_compression::server {

// The operations of a call at the transport, as gRPC's reactors have them: each starts something
// and returns. At most one read and one write at a time, nothing after Finish but Cancel.
class StreamTransport {
 public:
  virtual ~StreamTransport() = default;
  virtual void StartRead(grpc::ByteBuffer* message) = 0;
  virtual void StartWrite(const grpc::ByteBuffer* message) = 0;
  virtual void Finish(const absl::Status& status) = 0;
  // Both at once, which is cheaper; there is no OnWriteDone.
  virtual void WriteAndFinish(const grpc::ByteBuffer* message, const absl::Status& status) = 0;
  virtual void Cancel() = 0;           // tears the stream down
  virtual bool cancelled() const = 0;  // by the peer, or its deadline passed
};

// What is special about a call: what it makes of its tensors. The hooks are called by one thread at
// a time, and none after OnEnd, which comes once, when no hook and no task of the call is left.
// They neither compute nor wait.
class StreamHandler : public TensorSink {
 public:
  // Where OnOpen said that the rest has to wait: starts what is waited for, and calls `ready`, once
  // and on any thread. It may run after OnEnd.
  using Ready = std::function<void(const absl::Status&)>;
  using Loader = std::function<void(Ready ready)>;
  virtual Loader MakeLoader() { return nullptr; }

  // The peer half-closed and every tensor that it began is committed.
  virtual absl::Status OnHalfClose() = 0;

  virtual void OnEnd() {}
};

// A streaming call. Reads only when there is memory for what comes and the peer takes its replies,
// runs what a tensor asks for on strands, and writes replies as the peer takes them. A peer that
// neither sends nor reads for the stall timeout, while it is its turn, loses the call; so does one
// that has begun a tensor, whose memory is held for it, and then sends slower than the minimum rate
// for as long. However a call ends, its memory goes back. CallMachine has the states.
//
// The transport calls the On... methods on its threads; none of them computes or waits. What goes
// on after waiting for memory, and what the timer finds, runs on the executor.
class StreamCall : public std::enable_shared_from_this<StreamCall> {
 public:
  struct Environment {
    MemoryBudget* budget = nullptr;
    TimerThread* timers = nullptr;
    Executor* executor = nullptr;
    absl::Duration stall_timeout = absl::Seconds(60);
    MemoryShare share = {};       // what its tensors are put on
    UploadShare uploads = {};     // what they are counted by
    int64_t min_upload_rate = 0;  // bytes a second; 0: none
    CallMachine::Limits limits = {};
  };

  // A call with a handler that `make` makes for it.
  template <typename Make>
  static std::shared_ptr<StreamCall> Create(const Environment& environment, Make make) {
    const std::shared_ptr<StreamCall> call(new StreamCall(environment));
    call->handler_ = make(call.get());
    call->receiver_.emplace(call->handler_.get(), environment.budget, environment.share,
                            environment.uploads);
    return call;
  }

  // Starts reading. `transport` lives until OnDone returns.
  void Start(StreamTransport* transport);

  void OnReadDone(bool ok);
  void OnWriteDone(bool ok);
  void OnCancel();
  void OnDone();

  // For handlers, on any thread, from here on.

  // Runs `task`, which returns a StatusOr<Reply>, on `strand`, unless the call has failed by then.
  // The reply is pushed; an error fails the call. The call lives until the task is done and
  // destroyed.
  template <typename Task>
  void Run(Strand& strand, Task task, Work work = Work::kShort) {
    BeginTask(work);
    Post(strand, std::move(task), work);
  }

  // In a task: the same, once nothing is queued or being written. One task at a time waits for
  // that.
  template <typename Task>
  void RunWhenDrained(Strand& strand, Task task) {
    WhenDrained([this, strand = strand.shared_from_this(), task = std::move(task)]() mutable {
      Post(*strand, std::move(task), Work::kShort);
    });
  }

  // The two ends of a task that Run does not know of. With BeginTask the call lives until EndTask,
  // which pushes the reply or fails the call.
  void BeginTask(Work work);
  void EndTask(Work work, absl::StatusOr<Reply> reply);

  // Queues a reply. An empty one is none.
  void Push(Reply reply);

  bool failed() const { return failed_.load(std::memory_order_acquire); }
  bool cancelled() const;

 private:
  // What is to be processed.
  enum class Input { kMessage, kHalfClose, kMemory, kSession };

  explicit StreamCall(const Environment& environment)
      : environment_(environment), machine_(environment.limits) {}

  template <typename Task>
  void Post(Strand& strand, Task task, Work work) {
    strand.Post(
        [self = shared_from_this(), task = std::optional<Task>(std::move(task)), work]() mutable {
          absl::StatusOr<Reply> reply = Reply();
          if (!self->failed()) reply = CatchExceptions(*task);
          task.reset();  // with the memory that it held, before the call can end
          self->EndTask(work, std::move(reply));
        },
        work);
  }
  void WhenDrained(std::function<void()> post) ABSL_LOCKS_EXCLUDED(mutex_);

  // Does what belongs to the transport; the rest follows without the mutex.
  CallActions Perform(CallActions actions) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Follow(CallActions actions) ABSL_LOCKS_EXCLUDED(mutex_);
  CallActions AskMemory() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  CallActions FailWith(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  CallMachine::Queue queue() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  void Process();
  absl::StatusOr<CallMachine::Processing> ProcessInput(Input input);
  void OnMemory(Reservation memory);
  void OnSession(const absl::Status& status);

  void Progressed() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ArmTimer() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnTimer();
  // Of what was just read. DEADLINE_EXCEEDED where it came too slowly.
  absl::Status CheckRate() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Environment environment_;
  std::atomic<bool> failed_{false};

  // Used by the thread that processes, and under the mutex while none does.
  std::unique_ptr<StreamHandler> handler_;
  std::optional<TensorReceiver> receiver_;
  Input input_ = Input::kMessage;
  grpc::ByteBuffer message_;
  std::optional<Reservation> granted_;
  absl::Status session_status_;
  StreamHandler::Loader loader_;

  mutable Mutex mutex_;
  CallMachine machine_ ABSL_GUARDED_BY(mutex_);
  StreamTransport* transport_ ABSL_GUARDED_BY(mutex_) = nullptr;
  MemoryBudget::Ticket ticket_ ABSL_GUARDED_BY(mutex_) = 0;
  ReplyQueue replies_ ABSL_GUARDED_BY(mutex_);
  grpc::ByteBuffer incoming_ ABSL_GUARDED_BY(mutex_);  // the transport's while it reads
  grpc::ByteBuffer outgoing_ ABSL_GUARDED_BY(mutex_);  // the transport's while it writes
  absl::Status outcome_ ABSL_GUARDED_BY(mutex_);
  std::function<void()> when_drained_ ABSL_GUARDED_BY(mutex_);

  absl::Time last_progress_ ABSL_GUARDED_BY(mutex_);
  absl::Time write_started_ ABSL_GUARDED_BY(mutex_);  // or the end
  std::optional<TimerThread::Id> timer_ ABSL_GUARDED_BY(mutex_);
  // Of the tensors that are on their way: the time that was spent waiting for the peer to send, and
  // what was received.
  absl::Time read_started_ ABSL_GUARDED_BY(mutex_);
  absl::Duration awaited_ ABSL_GUARDED_BY(mutex_);
  int64_t received_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_TENSORS_STREAM_CALL_H_
