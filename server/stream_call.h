// What the streaming calls share: reading, replying, failing, stalling, ending.
#ifndef NNI_COMPRESSION_SERVER_STREAM_CALL_H_
#define NNI_COMPRESSION_SERVER_STREAM_CALL_H_

#include <grpcpp/support/byte_buffer.h>

#include <atomic>
#include <functional>
#include <memory>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/memory_budget.h"
#include "server/mutex.h"
#include "server/reply_queue.h"
#include "server/strand.h"
#include "server/tensor_receiver.h"
#include "server/timer_thread.h"

namespace nni_compression::server {

// The operations of a call at the transport, as gRPC's reactors have them: each starts something
// and returns. At most one read and one write at a time, nothing after Finish but Cancel.
class StreamTransport {
 public:
  virtual ~StreamTransport() = default;
  virtual void StartRead(grpc::ByteBuffer* message) = 0;
  virtual void StartWrite(const grpc::ByteBuffer* message) = 0;
  virtual void SetResponse(const grpc::ByteBuffer& response) = 0;  // of calls without writes
  virtual void Finish(const absl::Status& status) = 0;
  // Both at once, which is cheaper; there is no OnWriteDone.
  virtual void WriteAndFinish(const grpc::ByteBuffer* message, const absl::Status& status) = 0;
  virtual void Cancel() = 0;           // tears the stream down
  virtual bool cancelled() const = 0;  // by the peer, or its deadline passed
};

// A streaming call. Reads only when there is memory for what comes, runs what a tensor asks for on
// strands, and writes replies as the peer takes them. A peer that neither sends nor reads for the
// stall timeout, while it is its turn, loses the call; so does one that has begun a tensor, whose
// memory is held for it, and then sends slower than the minimum rate for as long. However a call
// ends, its memory goes back.
//
// The transport calls the On... methods of the first block on its threads; none of them computes or
// waits. The hooks of derived classes and of TensorSink are called by one thread at a time, except
// for what says otherwise.
class StreamCall : public std::enable_shared_from_this<StreamCall>, protected TensorSink {
 public:
  struct Environment {
    MemoryBudget* budget = nullptr;
    TimerThread* timers = nullptr;
    absl::Duration stall_timeout = absl::Seconds(60);
    MemoryShare share = {};       // what its tensors are put on
    UploadShare uploads = {};     // what they are counted by
    int64_t min_upload_rate = 0;  // bytes a second; 0: none
  };

  explicit StreamCall(const Environment& environment);

  // Starts reading. `transport` lives until OnDone returns.
  void Start(StreamTransport* transport);

  void OnReadDone(bool ok);
  void OnWriteDone(bool ok);
  void OnCancel();
  void OnDone();

 protected:
  // Runs `task` on `strand`, unless the call has failed by then; an error fails the call. The call
  // lives until the task is done and destroyed. Any thread.
  void Run(Strand& strand, std::function<absl::Status()> task, Work work = Work::kShort);

  // Queues a reply. Small ones wait for those of the short tasks that are under way, so that many
  // small layers are answered in one message. Any thread.
  void Push(Reply reply);

  // Ends the call once all replies are written. Any thread.
  void Complete();

  // The same for a call whose transport has a response in place of writes.
  void CompleteWith(const grpc::ByteBuffer& response);

  // Ends the call now; nothing queued is written any more. The first status counts. Any thread.
  void Fail(const absl::Status& status);

  bool failed() const { return failed_.load(std::memory_order_acquire); }
  bool cancelled() const;

  // Called with the first message, before anything is made of it. Returns whether `ready` will be
  // called, once and on any thread; the message waits for that.
  using Ready = std::function<void(const absl::Status&)>;
  virtual bool Prepare(const grpc::ByteBuffer& message, const Ready& ready) { return false; }

  // Work outside of Run that the call waits for. EndTask with an error fails the call. Any thread.
  void BeginTask(Work work);
  void EndTask(Work work, const absl::Status& status);

  // The peer half-closed and every tensor that it began is committed.
  virtual absl::Status OnHalfClose() = 0;

  // Nothing is queued, and the call goes on. Comes at least once after replies were pushed. Any
  // thread, even several at a time.
  virtual void OnDrained() {}

  // The call is over; no other hook runs any more, but tasks may be left.
  virtual void OnEnd() {}

 private:
  enum class Reading { kIdle, kStarted, kProcessing, kNeedsMemory, kDone };

  void Process(absl::StatusOr<TensorReceiver::Progress> progress);
  void OnMemory(Reservation memory);
  void OnTimer();

  // Starts the next write or the end, if it is time.
  void Advance();
  void FailLocked(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool AdvanceLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ArmTimer() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Progressed() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StartRead() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Of what was just read. DEADLINE_EXCEEDED where it came too slowly.
  absl::Status CheckRate() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Environment environment_;
  std::atomic<bool> failed_{false};

  // Used by whoever is kProcessing, and under the mutex otherwise.
  TensorReceiver receiver_;
  grpc::ByteBuffer incoming_;
  bool prepared_ = false;

  mutable Mutex mutex_;
  StreamTransport* transport_ ABSL_GUARDED_BY(mutex_) = nullptr;
  Reading reading_ ABSL_GUARDED_BY(mutex_) = Reading::kIdle;
  MemoryBudget::Ticket ticket_ ABSL_GUARDED_BY(mutex_) = 0;
  ReplyQueue replies_ ABSL_GUARDED_BY(mutex_);
  grpc::ByteBuffer outgoing_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  int tasks_ ABSL_GUARDED_BY(mutex_) = 0;
  int long_tasks_ ABSL_GUARDED_BY(mutex_) = 0;  // of tasks_
  std::optional<absl::Status> outcome_ ABSL_GUARDED_BY(mutex_);
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Time last_progress_ ABSL_GUARDED_BY(mutex_);
  std::optional<TimerThread::Id> timer_ ABSL_GUARDED_BY(mutex_);

  // Of the tensors that are on their way: the time that was spent waiting for the peer to send, and
  // what came.
  absl::Time read_started_ ABSL_GUARDED_BY(mutex_);
  absl::Duration awaited_ ABSL_GUARDED_BY(mutex_);
  int64_t came_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_STREAM_CALL_H_
