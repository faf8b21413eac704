// A streaming call: transport, replies, tasks and timeouts.
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

// The transport operations of a call, modelled on gRPC's reactors: each starts an operation and
// returns. At most one read and one write at a time; after Finish only Cancel.
class StreamTransport {
 public:
  virtual ~StreamTransport() = default;
  virtual void StartRead(grpc::ByteBuffer* message) = 0;
  virtual void StartWrite(const grpc::ByteBuffer* message) = 0;
  virtual void Finish(const absl::Status& status) = 0;
  // Both in one, which is cheaper; no OnWriteDone follows.
  virtual void WriteAndFinish(const grpc::ByteBuffer* message, const absl::Status& status) = 0;
  virtual void Cancel() = 0;           // tears the stream down
  virtual bool cancelled() const = 0;  // by the peer or its deadline
};

// The part of a call that depends on its method. The hooks are called by one thread at a time, and
// none after OnEnd, which is called once, when no hook and no task of the call is left. They
// neither compute nor block.
class StreamHandler : public TensorSink {
 public:
  // Used when OnOpen returned false: starts loading, and calls `ready` once, on any thread. It may
  // run after OnEnd.
  using Ready = std::function<void(const absl::Status&)>;
  using Loader = std::function<void(Ready ready)>;
  virtual Loader MakeLoader() { return nullptr; }

  // The peer half-closed, with every tensor committed.
  virtual absl::Status OnHalfClose() = 0;

  virtual void OnEnd() {}
};

// A streaming call with backpressure: it reads only while there is memory for the data and the peer
// reads its replies. Tasks run on strands. A peer that has to act next but neither sends nor reads
// for the stall timeout loses the call; so does one that has begun a tensor, for which memory is
// held, and then sends slower than the minimum rate for that long. However a call ends, its memory
// is released. CallMachine has the states.
//
// The transport calls the On... methods on its threads; none of them computes or blocks. Work that
// resumes after waiting for memory, or that a timer starts, runs on the executor.
class StreamCall : public std::enable_shared_from_this<StreamCall> {
 public:
  struct Environment {
    MemoryBudget* budget = nullptr;
    TimerThread* timers = nullptr;
    Executor* executor = nullptr;
    absl::Duration stall_timeout = absl::Seconds(60);
    MemoryQuota memory_quota = {};  // its tensors' memory is charged to
    UploadQuota upload_quota = {};  // its tensors are counted against
    int64_t min_upload_rate = 0;    // bytes per second; 0: none
    CallMachine::Limits limits = {};
  };

  // Creates a call; `make` creates its handler.
  template <typename Make>
  static std::shared_ptr<StreamCall> Create(const Environment& environment, Make make) {
    const std::shared_ptr<StreamCall> call(new StreamCall(environment));
    call->handler_ = make(call.get());
    call->receiver_.emplace(call->handler_.get(), environment.budget, environment.memory_quota,
                            environment.upload_quota);
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
  // The reply is pushed; an error fails the call. The call lives until the task has been run and
  // destroyed.
  template <typename Task>
  void Run(Strand& strand, Task task, Work work = Work::kShort) {
    BeginTask(work);
    Post(strand, std::move(task), work);
  }

  // In a task: the same, once nothing is queued or being written. At most one task may wait for
  // that.
  template <typename Task>
  void RunWhenDrained(Strand& strand, Task task) {
    WhenDrained([this, strand = strand.shared_from_this(), task = std::move(task)]() mutable {
      Post(*strand, std::move(task), Work::kShort);
    });
  }

  // For a task that is not run by Run: from BeginTask the call lives until EndTask, which pushes
  // the reply or fails the call.
  void BeginTask(Work work);
  void EndTask(Work work, absl::StatusOr<Reply> reply);

  // Queues a reply. An empty reply is ignored.
  void Push(Reply reply);

  bool failed() const { return failed_.load(std::memory_order_acquire); }
  bool cancelled() const;

 private:
  // The next processing step.
  enum class Input { kMessage, kHalfClose, kMemory, kSession };

  explicit StreamCall(const Environment& environment)
      : environment_(environment), machine_(environment.limits) {}

  template <typename Task>
  void Post(Strand& strand, Task task, Work work) {
    strand.Post(
        [self = shared_from_this(), task = std::optional<Task>(std::move(task)), work]() mutable {
          absl::StatusOr<Reply> reply = Reply();
          if (!self->failed()) reply = CatchExceptions(*task);
          task.reset();  // frees the memory that it holds before the call can end
          self->EndTask(work, std::move(reply));
        },
        work);
  }
  void WhenDrained(std::function<void()> post) ABSL_LOCKS_EXCLUDED(mutex_);

  // Performs the transport's actions; the others follow without the mutex.
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
  // Checks the throughput of the last read. DEADLINE_EXCEEDED when it was too low.
  absl::Status CheckRate() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Environment environment_;
  std::atomic<bool> failed_{false};

  // Used by the processing thread, and with the mutex held while there is none.
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
  grpc::ByteBuffer incoming_ ABSL_GUARDED_BY(mutex_);  // owned by the transport while it reads
  grpc::ByteBuffer outgoing_ ABSL_GUARDED_BY(mutex_);  // owned by the transport while it writes
  absl::Status outcome_ ABSL_GUARDED_BY(mutex_);
  std::function<void()> when_drained_ ABSL_GUARDED_BY(mutex_);

  absl::Time last_progress_ ABSL_GUARDED_BY(mutex_);
  absl::Time write_started_ ABSL_GUARDED_BY(mutex_);  // or the finish
  std::optional<TimerThread::Id> timer_ ABSL_GUARDED_BY(mutex_);
  // Of the incomplete tensors: the time spent waiting for the peer, and the bytes received.
  absl::Time read_started_ ABSL_GUARDED_BY(mutex_);
  absl::Duration awaited_ ABSL_GUARDED_BY(mutex_);
  int64_t received_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_TENSORS_STREAM_CALL_H_
