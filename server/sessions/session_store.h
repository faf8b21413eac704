// All sessions: ownership, leases, and reports of ended ones.
#ifndef NNI_COMPRESSION_SERVER_SESSIONS_SESSION_STORE_H_
#define NNI_COMPRESSION_SERVER_SESSIONS_SESSION_STORE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/access/tenants.h"
#include "server/base/mutex.h"
#include "server/base/timer_thread.h"
#include "server/sessions/page_tokens.h"
#include "server/sessions/session_record.h"

namespace nni_compression::server {

class SessionStore;

// A call's use of a session, whose lease does not run meanwhile. Thread-compatible; may be dropped
// on any thread.
class SessionUse {
 public:
  SessionUse() = default;
  SessionUse(SessionUse&& other) noexcept { *this = std::move(other); }
  SessionUse& operator=(SessionUse&& other) noexcept;
  ~SessionUse() { Drop(); }

  explicit operator bool() const { return record_ != nullptr; }
  SessionRecord* operator->() const { return record_.get(); }
  SessionRecord& operator*() const { return *record_; }
  const std::shared_ptr<SessionRecord>& record() const { return record_; }

  void Drop();

 private:
  friend class SessionStore;
  SessionUse(SessionStore* store, std::shared_ptr<SessionRecord> record)
      : store_(store), record_(std::move(record)) {}

  SessionStore* store_ = nullptr;
  std::shared_ptr<SessionRecord> record_;
};

// Creation, last call and lease of a session.
struct SessionTimes {
  absl::Time created;
  absl::Time last_call;
  absl::Duration lease;  // the whole lease, which a call renews
  absl::Duration lease_left;
};

// Thread-safe. Sessions are keyed by tenant and id: for other tenants they do not exist.
class SessionStore {
 public:
  struct Options {
    int64_t max_sessions = 10000;
    std::optional<int64_t> disk_budget;  // bytes of all live sessions in storage
    absl::Duration default_lease = absl::Minutes(30);
    absl::Duration min_lease = absl::Seconds(1);
    absl::Duration max_lease = absl::Hours(24);
    absl::Duration report_retention = absl::Hours(1);
    // Limits per tenant, so that one does not drop the reports of others, and of the bytes of all;
    // above the latter the oldest report of the tenant with most bytes is dropped.
    int64_t max_reports = 1000;
    int64_t max_report_bytes = 64 << 20;
    std::optional<int64_t> all_report_bytes;
  };

  // `retire` is called, with no lock held, for every session that ended; on the session's strand it
  // writes the last report and frees the memory. `forget` is called, with the store's lock held,
  // when a report expires. `timers` outlives the store.
  SessionStore(const Options& options, TimerThread* timers,
               std::function<void(std::shared_ptr<SessionRecord>)> retire,
               std::function<void(const SessionRecord&)> forget = nullptr);

  // The timers must be stopped, and no SessionUse may be left.
  ~SessionStore() = default;

  // The tenant's live session of this request_id, or an empty use. INVALID_ARGUMENT when its
  // `fingerprint` differs.
  absl::StatusOr<SessionUse> FindRequest(absl::string_view tenant, absl::string_view request_id,
                                         absl::string_view fingerprint);

  // Adds a session and gives it an id; a session that FindRequest finds is returned instead.
  // RESOURCE_EXHAUSTED when there are max_sessions, the disk budget is exhausted, or one of the
  // tenant's quotas in `quota` is.
  absl::StatusOr<SessionUse> Insert(std::shared_ptr<SessionRecord> record,
                                    absl::string_view request_id, absl::string_view fingerprint,
                                    std::optional<absl::Duration> lease,
                                    const access::Quota& quota = {});

  // Adds a stored session. A duplicate sequence is replaced by a new one, an invalid lease by the
  // default. The lease, or the retention of the report, starts now.
  struct Stored {
    uint64_t sequence = 0;
    SessionState state = SessionState::kActive;
    absl::Duration lease;
    absl::Time created;
    absl::Time last_call;
    std::string request_id;
    std::string fingerprint;
  };
  void Restore(const std::shared_ptr<SessionRecord>& record, const Stored& stored);

  // Removes a new session that could not be stored.
  void Discard(const std::shared_ptr<SessionRecord>& record);

  // What a storage has to keep for Restore.
  uint64_t Sequence(const SessionRecord& record) const { return record.sequence_; }

  // NOT_FOUND for an id that is unknown, has ended, or is another tenant's.
  absl::StatusOr<SessionUse> Use(absl::string_view tenant, absl::string_view id);

  // The same, also for an ended session whose report is kept. Does not hold the lease.
  absl::StatusOr<std::shared_ptr<SessionRecord>> FindReport(absl::string_view tenant,
                                                            absl::string_view id);

  // Ends a session. OK when it has ended already, NOT_FOUND when it is unknown.
  absl::Status Close(absl::string_view tenant, absl::string_view id);

  struct Page {
    std::vector<std::shared_ptr<SessionRecord>> sessions;
    std::string next_token;
  };
  // Live sessions with all of `labels`, and ended ones whose report is kept if `include_ended`,
  // oldest first; of all tenants for nullopt. INVALID_ARGUMENT for a token that is not from a
  // listing of this reader.
  absl::StatusOr<Page> List(std::optional<absl::string_view> tenant,
                            const std::map<std::string, std::string>& labels, int page_size,
                            absl::string_view token, bool include_ended = false);

  // The token of a page that begins with this session, for the reader of List.
  std::string Token(std::optional<absl::string_view> tenant, const SessionRecord& record) const;

  SessionTimes Times(const SessionRecord& record);
  int64_t live() const;

  // The number of sessions by algorithm and state, including ended ones with a report.
  std::map<std::pair<std::string, SessionState>, int64_t> Count() const;

  // Totals of a tenant's live sessions.
  struct Live {
    int64_t sessions = 0;
    int64_t disk_bytes = 0;
  };
  // By tenant, for those that have any.
  std::map<std::string, Live> LiveByTenant() const;

  // The tenant of the session with this id, live or ended. For operators: a linear search.
  std::optional<std::string> TenantOf(absl::string_view id) const;

 private:
  friend class SessionUse;
  using Key = std::pair<std::string, std::string>;  // tenant, id or request_id
  using Ended = std::vector<std::shared_ptr<SessionRecord>>;
  using BySequence = std::map<uint64_t, std::shared_ptr<SessionRecord>>;

  struct Request {
    std::string fingerprint;
    std::shared_ptr<SessionRecord> record;
  };

  void EndUse(SessionRecord* record);
  void Sweep();
  void Retire(Ended ended);

  SessionUse AcquireUse(const std::shared_ptr<SessionRecord>& record)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<SessionUse> AcquireRequest(const Key& key, absl::string_view fingerprint)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // RESOURCE_EXHAUSTED when one more session would exceed a limit.
  absl::Status Admit(const SessionRecord& record, const access::Quota& quota) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AddLive(const std::shared_ptr<SessionRecord>& record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Remove(const std::shared_ptr<SessionRecord>& record, SessionState state)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  using ByTime = std::set<std::pair<absl::Time, SessionRecord*>>;
  struct Reports {
    ByTime by_time;
    BySequence by_age;
    int64_t bytes = 0;
  };

  void KeepReport(const std::shared_ptr<SessionRecord>& record)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void End(const std::shared_ptr<SessionRecord>& record, SessionState state, Ended* ended)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // About when the first lease, of at least one session, will end.
  absl::Duration UntilNextLease() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndExpired(Ended* ended) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Drops expired reports, and those above the limits for all tenants.
  void ForgetReports() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ForgetReport(SessionRecord* record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Arm() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Options options_;
  TimerThread* const timers_;
  const std::function<void(std::shared_ptr<SessionRecord>)> retire_;
  const std::function<void(const SessionRecord&)> forget_;

  const PageTokens tokens_;
  mutable Mutex mutex_;
  absl::flat_hash_map<Key, std::shared_ptr<SessionRecord>> sessions_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<Key, Request> requests_ ABSL_GUARDED_BY(mutex_);
  // By age. A session moves from the first to the second.
  BySequence live_ ABSL_GUARDED_BY(mutex_);
  BySequence ended_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Live> live_by_tenant_
      ABSL_GUARDED_BY(mutex_);                      // only tenants that have any
  int64_t disk_bytes_ ABSL_GUARDED_BY(mutex_) = 0;  // of live_
  // By deadline: unused live sessions, and reports.
  ByTime leases_ ABSL_GUARDED_BY(mutex_);
  ByTime reports_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Reports> reports_by_tenant_
      ABSL_GUARDED_BY(mutex_);  // only tenants that have any
  std::optional<TimerThread::Id> timer_ ABSL_GUARDED_BY(mutex_);
  int64_t report_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t next_sequence_ ABSL_GUARDED_BY(mutex_) = 1;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_SESSIONS_SESSION_STORE_H_
