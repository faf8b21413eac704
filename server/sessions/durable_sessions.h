// Sessions in memory and in storage: what is written when, and how a session is loaded.
#ifndef NNI_COMPRESSION_SERVER_SESSIONS_DURABLE_SESSIONS_H_
#define NNI_COMPRESSION_SERVER_SESSIONS_DURABLE_SESSIONS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "compression/algorithms/registry.h"
#include "nni/compression/v1/compression.pb.h"
#include "server/base/executor.h"
#include "server/base/mutex.h"
#include "server/limits/memory_budget.h"
#include "server/sessions/commit_queue.h"
#include "server/sessions/session_store.h"
#include "server/storage/storage.h"

namespace nni_compression::server {

// Connects a server to its storage. Thread-safe; no method except Recover and Stop waits for the
// storage. Callbacks run on a thread of the storage or of the executor, or at once.
class DurableSessions {
 public:
  using Done = CommitQueue::Done;

  struct Environment {
    Storage* storage = nullptr;
    SessionStore* sessions = nullptr;
    std::function<Executor*(absl::string_view algorithm)> executor_of;
    MemoryBudget* budget = nullptr;
    std::function<std::shared_ptr<MemoryAccount>(const std::string& tenant)> account_of;
    const compression::Registry* registry = nullptr;
  };

  // All of it outlives the object, except for the executors, which outlive Stop.
  explicit DurableSessions(const Environment& environment);

  // Adds every stored session to the store, without its state. Before the first call.
  absl::Status Recover();

  // Writes what is queued; nothing is read after that.
  void Stop();

  // Queues a new session. On the session's strand.
  void Create(const std::shared_ptr<SessionRecord>& record,
              const nni::compression::v1::BindModelRequest& request, absl::string_view fingerprint,
              Done done);

  // Queues the changes of `session` since it was last saved. On the session's strand. `saved` is
  // called with the revision once the session is stored as it is now; then its calls may be
  // answered.
  using Saved = std::function<void(const absl::StatusOr<uint64_t>& revision)>;
  void Save(const std::shared_ptr<SessionRecord>& record, compression::Session& session,
            Saved saved);

  // Queues the session's end, with the last report. On the session's strand.
  void End(const std::shared_ptr<SessionRecord>& record,
           const nni::compression::v1::Session& report, Done done);

  // Queues the removal of everything stored of a session.
  void Forget(const SessionRecord& record);

  // Loads a session's state, or the report of one that has ended, if it is not in memory. DATA_LOSS
  // when it is damaged, RESOURCE_EXHAUSTED when there is no memory for it now.
  void Load(const std::shared_ptr<SessionRecord>& record, Done done);

 private:
  absl::Status RecoverOne(const CatalogueRow& row);
  // `reading` is the memory of `stored`.
  absl::Status RestoreSession(SessionRecord& record, StoredSession stored, SessionMemory reading);
  absl::Status RestoreReport(SessionRecord& record, const std::string& bytes);
  void Read(const std::shared_ptr<SessionRecord>& record);
  void FinishLoad(const std::shared_ptr<SessionRecord>& record, const absl::Status& status);
  void Rollback(const std::shared_ptr<SessionRecord>& record, const absl::Status& error);
  std::string Entry(const SessionRecord& record) const;

  const Environment environment_;
  Mutex mutex_;
  std::map<const SessionRecord*, std::vector<Done>> loading_ ABSL_GUARDED_BY(mutex_);
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::unique_ptr<Executor> readers_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<CommitQueue> commits_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_SESSIONS_DURABLE_SESSIONS_H_
