// Stores the changes of calls before they are answered.
#ifndef NNI_COMPRESSION_SERVER_SESSIONS_COMMIT_QUEUE_H_
#define NNI_COMPRESSION_SERVER_SESSIONS_COMMIT_QUEUE_H_

#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "server/base/mutex.h"
#include "server/sessions/session_record.h"
#include "server/storage/storage.h"

namespace nni_compression::server {

// One thread that writes to a storage, in the order of the calls, in batches of all queued changes;
// those of one session's state that meet in a batch are written as one.
// A session may run ahead of its writes; answers wait for them. When a write fails, all later
// changes of the session are lost, too: their calls get the error, until the session has been
// rolled back to the stored state. Thread-safe.
class CommitQueue {
 public:
  // Called on the queue's thread, or at once if there is nothing to wait for. Must not block or
  // compute.
  using Done = std::function<void(const absl::Status&)>;

  // `rollback` is called with a session whose write failed and the error; it has to call ClearError
  // once the session has no unsaved changes. `storage` outlives the queue.
  using Rollback = std::function<void(const std::shared_ptr<SessionRecord>&, const absl::Status&)>;
  CommitQueue(Storage* storage, Rollback rollback);

  // Writes what is queued.
  ~CommitQueue();

  // Queues a change. `record` is its session; null for one that is not used any more.
  void Write(std::shared_ptr<SessionRecord> record, SessionChange change, Done done);

  // Calls `done` when all changes that the session has queued by now are written and answered.
  void WaitForWrites(const std::shared_ptr<SessionRecord>& record, Done done);

  void ClearError(SessionRecord* record);

  // Waits until nothing is queued.
  void Flush();

 private:
  struct Item {
    std::shared_ptr<SessionRecord> record;
    bool writes = false;
    SessionChange change;
    Done done;
  };

  void Queue(Item item);
  void Loop();
  void Process(std::vector<Item> items);

  Storage* const storage_;
  const Rollback rollback_;
  Mutex mutex_;  // and of the records' `unsaved_` and `save_error_`
  CondVar changed_;
  std::vector<Item> queue_ ABSL_GUARDED_BY(mutex_);
  bool busy_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: it uses the members above
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_SESSIONS_COMMIT_QUEUE_H_
