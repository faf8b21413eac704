#include "server/sessions/session_store.h"

#include <sys/random.h>

#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "server/base/errors.h"
#include "server/base/log.h"

namespace nni_compression::server {
namespace {

// 128 random bits.
absl::StatusOr<std::string> NewId() {
  char bytes[16];
  if (getrandom(bytes, sizeof(bytes), 0) != sizeof(bytes)) {
    return absl::InternalError("the system's random number generator failed");
  }
  return absl::BytesToHexString(absl::string_view(bytes, sizeof(bytes)));
}

bool HasLabels(const SessionRecord& record, const std::map<std::string, std::string>& labels) {
  return std::all_of(labels.begin(), labels.end(), [&](const auto& label) {
    const auto it = record.labels().find(label.first);
    return it != record.labels().end() && it->second == label.second;
  });
}

absl::Status NotFound(absl::string_view id, SessionState state = SessionState::kActive) {
  const char* const what = state == SessionState::kClosed    ? " was closed"
                           : state == SessionState::kExpired ? " has expired"
                                                             : " does not exist";
  return absl::NotFoundError(absl::StrCat("session '", Printable(id, 64), "'", what));
}

}  // namespace

SessionUse& SessionUse::operator=(SessionUse&& other) noexcept {
  if (this != &other) {
    Drop();
    store_ = other.store_;
    record_ = std::move(other.record_);
  }
  return *this;
}

void SessionUse::Drop() {
  if (record_ != nullptr) store_->EndUse(record_.get());
  record_.reset();
}

SessionStore::SessionStore(const Options& options, TimerThread* timers,
                           std::function<void(std::shared_ptr<SessionRecord>)> retire,
                           std::function<void(const SessionRecord&)> forget)
    : options_(options), timers_(timers), retire_(std::move(retire)), forget_(std::move(forget)) {}

absl::StatusOr<SessionUse> SessionStore::FindRequest(absl::string_view tenant,
                                                     absl::string_view request_id,
                                                     absl::string_view fingerprint) {
  Ended ended;
  absl::StatusOr<SessionUse> use = [&] {
    MutexLock lock(&mutex_);
    EndExpired(&ended);
    return AcquireRequest(Key(tenant, request_id), fingerprint);
  }();
  Retire(std::move(ended));
  return use;
}

absl::StatusOr<SessionUse> SessionStore::Insert(std::shared_ptr<SessionRecord> record,
                                                absl::string_view request_id,
                                                absl::string_view fingerprint,
                                                std::optional<absl::Duration> lease,
                                                const access::Quota& quota) {
  absl::StatusOr<std::string> id = NewId();
  if (!id.ok()) return id.status();
  Ended ended;
  absl::StatusOr<SessionUse> use = [&]() -> absl::StatusOr<SessionUse> {
    MutexLock lock(&mutex_);
    EndExpired(&ended);
    const Key request_key(record->tenant(), std::string(request_id));
    absl::StatusOr<SessionUse> earlier = AcquireRequest(request_key, fingerprint);
    if (!earlier.ok() || *earlier) return earlier;
    if (absl::Status status = Admit(*record, quota); !status.ok()) return status;
    record->id_ = *std::move(id);
    record->sequence_ = next_sequence_++;
    record->lease_ =
        std::clamp(lease.value_or(options_.default_lease), options_.min_lease, options_.max_lease);
    record->create_time_ = timers_->clock()->Now();
    if (!request_id.empty()) {
      record->request_key_ = std::string(request_id);
      requests_[request_key] = {std::string(fingerprint), record};
    }
    sessions_[Key(record->tenant(), record->id())] = record;
    AddLive(record);
    return AcquireUse(record);
  }();
  Retire(std::move(ended));
  return use;
}

void SessionStore::Restore(const std::shared_ptr<SessionRecord>& record, const Stored& stored) {
  MutexLock lock(&mutex_);
  const bool taken = live_.count(stored.sequence) + ended_.count(stored.sequence) > 0;
  record->sequence_ = taken ? next_sequence_ : stored.sequence;
  record->lease_ = stored.lease >= options_.min_lease ? stored.lease : options_.default_lease;
  record->create_time_ = stored.created;
  record->last_call_ = stored.last_call;
  record->state_.store(stored.state, std::memory_order_release);
  next_sequence_ = std::max(next_sequence_, record->sequence_ + 1);
  sessions_[Key(record->tenant(), record->id())] = record;
  if (stored.state != SessionState::kActive) {
    KeepReport(record);
  } else {
    AddLive(record);
    record->deadline_ = timers_->clock()->Now() + record->lease_;
    leases_.insert({record->deadline_, record.get()});
    record->request_key_ = stored.request_id;
    if (!stored.request_id.empty()) {
      requests_[Key(record->tenant(), stored.request_id)] = {stored.fingerprint, record};
    }
  }
  Arm();
}

void SessionStore::Discard(const std::shared_ptr<SessionRecord>& record) {
  MutexLock lock(&mutex_);
  if (record->state() != SessionState::kActive) return;
  Remove(record, SessionState::kClosed);
  sessions_.erase(Key(record->tenant(), record->id()));
}

absl::StatusOr<SessionUse> SessionStore::Use(absl::string_view tenant, absl::string_view id) {
  Ended ended;
  absl::StatusOr<SessionUse> use = [&]() -> absl::StatusOr<SessionUse> {
    MutexLock lock(&mutex_);
    EndExpired(&ended);
    const auto it = sessions_.find(Key(tenant, id));
    if (it == sessions_.end()) return NotFound(id);
    if (it->second->state() != SessionState::kActive) return NotFound(id, it->second->state());
    return AcquireUse(it->second);
  }();
  Retire(std::move(ended));
  return use;
}

absl::StatusOr<std::shared_ptr<SessionRecord>> SessionStore::FindReport(absl::string_view tenant,
                                                                        absl::string_view id) {
  MutexLock lock(&mutex_);
  const auto it = sessions_.find(Key(tenant, id));
  if (it == sessions_.end()) return NotFound(id);
  return it->second;
}

absl::Status SessionStore::Close(absl::string_view tenant, absl::string_view id) {
  Ended ended;
  {
    MutexLock lock(&mutex_);
    EndExpired(&ended);
    const auto it = sessions_.find(Key(tenant, id));
    if (it == sessions_.end()) return NotFound(id);
    if (it->second->state() == SessionState::kActive) {
      const std::shared_ptr<SessionRecord> record = it->second;
      End(record, SessionState::kClosed, &ended);
    }
  }
  Retire(std::move(ended));
  return absl::OkStatus();
}

absl::StatusOr<SessionStore::Page> SessionStore::List(
    std::optional<absl::string_view> tenant, const std::map<std::string, std::string>& labels,
    int page_size, absl::string_view token, bool include_ended) {
  const std::optional<uint64_t> from = token.empty() ? 0 : tokens_.Open(tenant, token);
  if (!from) {
    return absl::InvalidArgumentError(
        absl::StrCat("page_token is '", Printable(token, 64),
                     "'; it must be empty or from a reply of this server since its start"));
  }
  Page page;
  Ended ended;
  {
    MutexLock lock(&mutex_);
    EndExpired(&ended);
    const BySequence none;
    const BySequence* of = &none;
    if (include_ended && !tenant) of = &ended_;
    if (include_ended && tenant) {  // other tenants' reports cost it no time
      const auto own = reports_by_tenant_.find(std::string(*tenant));
      if (own != reports_by_tenant_.end()) of = &own->second.by_age;
    }
    const BySequence& kept = *of;
    auto live = live_.lower_bound(*from);
    auto ended = kept.lower_bound(*from);
    while (live != live_.end() || ended != kept.end()) {
      const bool is_live =
          ended == kept.end() || (live != live_.end() && live->first < ended->first);
      const std::shared_ptr<SessionRecord>& next = is_live ? (live++)->second : (ended++)->second;
      if ((tenant && next->tenant() != *tenant) || !HasLabels(*next, labels)) continue;
      if (static_cast<int>(page.sessions.size()) == page_size) {
        page.next_token = Token(tenant, *next);
        break;
      }
      page.sessions.push_back(next);
    }
  }
  Retire(std::move(ended));
  return page;
}

std::string SessionStore::Token(std::optional<absl::string_view> tenant,
                                const SessionRecord& record) const {
  return tokens_.Seal(tenant, record.sequence_);
}

SessionTimes SessionStore::Times(const SessionRecord& record) {
  MutexLock lock(&mutex_);
  absl::Duration left = record.lease_;
  if (record.uses_ == 0) left = record.deadline_ - timers_->clock()->Now();
  return {record.create_time_, record.last_call_, record.lease_,
          std::max(left, absl::ZeroDuration())};
}

int64_t SessionStore::live() const {
  MutexLock lock(&mutex_);
  return static_cast<int64_t>(live_.size());
}

std::map<std::pair<std::string, SessionState>, int64_t> SessionStore::Count() const {
  std::map<std::pair<std::string, SessionState>, int64_t> counts;
  MutexLock lock(&mutex_);
  for (const auto& [key, record] : sessions_) ++counts[{record->algorithm(), record->state()}];
  return counts;
}

std::map<std::string, SessionStore::Live> SessionStore::LiveByTenant() const {
  MutexLock lock(&mutex_);
  return live_by_tenant_;
}

std::optional<std::string> SessionStore::TenantOf(absl::string_view id) const {
  MutexLock lock(&mutex_);
  for (const auto& [key, record] : sessions_) {
    if (key.second == id) return key.first;
  }
  return std::nullopt;
}

absl::Duration SessionStore::UntilNextLease() const {
  const absl::Duration next =
      leases_.empty() ? absl::InfiniteDuration() : leases_.begin()->first - timers_->clock()->Now();
  return std::clamp(next, absl::Seconds(1), absl::Seconds(30));
}

absl::Status SessionStore::Admit(const SessionRecord& record, const access::Quota& quota) const {
  if (static_cast<int64_t>(live_.size()) >= options_.max_sessions) {
    return ExhaustedFor(UntilNextLease(),
                        absl::StrCat("the server has ", live_.size(), " live sessions; at most ",
                                     options_.max_sessions, " may live"));
  }
  const auto it = live_by_tenant_.find(record.tenant());
  const Live own = it == live_by_tenant_.end() ? Live() : it->second;
  // Retryable, once a session has ended, unless one session alone exceeds the limit.
  const auto wait = [until = UntilNextLease()](int64_t more, int64_t limit) {
    return more <= limit ? std::optional(until) : std::nullopt;
  };
  if (quota.sessions && own.sessions >= *quota.sessions) {
    return QuotaExhausted("sessions", own.sessions, 1, *quota.sessions, wait(1, *quota.sessions));
  }
  const int64_t more = record.disk_bytes();
  if (quota.disk && more > *quota.disk - own.disk_bytes) {
    return QuotaExhausted("disk", own.disk_bytes, more, *quota.disk, wait(more, *quota.disk));
  }
  if (options_.disk_budget && more > *options_.disk_budget - disk_bytes_) {
    const std::string message =
        absl::StrCat("the server's disk_budget is ", *options_.disk_budget,
                     " bytes; less than the ", more, " bytes that the session needs are left");
    const auto until = wait(more, *options_.disk_budget);
    return until ? ExhaustedFor(*until, message) : absl::ResourceExhaustedError(message);
  }
  return absl::OkStatus();
}

void SessionStore::AddLive(const std::shared_ptr<SessionRecord>& record) {
  live_[record->sequence_] = record;
  disk_bytes_ += record->disk_bytes();
  Live& own = live_by_tenant_[record->tenant()];
  ++own.sessions;
  own.disk_bytes += record->disk_bytes();
}

SessionUse SessionStore::AcquireUse(const std::shared_ptr<SessionRecord>& record) {
  if (record->uses_++ == 0) leases_.erase({record->deadline_, record.get()});
  record->last_call_ = timers_->clock()->Now();
  return SessionUse(this, record);
}

absl::StatusOr<SessionUse> SessionStore::AcquireRequest(const Key& key,
                                                        absl::string_view fingerprint) {
  const auto it = requests_.find(key);
  if (it == requests_.end()) return SessionUse();
  if (it->second.fingerprint == fingerprint) return AcquireUse(it->second.record);
  return absl::InvalidArgumentError(
      absl::StrCat("request_id '", Printable(key.second, 128),
                   "' was used for a different request; a new request needs a new request_id"));
}

void SessionStore::EndUse(SessionRecord* record) {
  MutexLock lock(&mutex_);
  if (--record->uses_ > 0 || record->state() != SessionState::kActive) return;
  record->last_call_ = timers_->clock()->Now();
  record->deadline_ = record->last_call_ + record->lease_;
  leases_.insert({record->deadline_, record});
  Arm();
}

void SessionStore::Sweep() {
  Ended ended;
  {
    MutexLock lock(&mutex_);
    timer_.reset();
    EndExpired(&ended);
    Arm();
  }
  Retire(std::move(ended));
}

void SessionStore::Retire(Ended ended) {
  for (std::shared_ptr<SessionRecord>& record : ended) retire_(std::move(record));
}

void SessionStore::Remove(const std::shared_ptr<SessionRecord>& record, SessionState state) {
  record->state_.store(state, std::memory_order_release);
  leases_.erase({record->deadline_, record.get()});
  live_.erase(record->sequence_);
  disk_bytes_ -= record->disk_bytes();
  const auto own = live_by_tenant_.find(record->tenant());
  own->second.disk_bytes -= record->disk_bytes();
  if (--own->second.sessions == 0) live_by_tenant_.erase(own);
  if (!record->request_key_.empty()) requests_.erase(Key(record->tenant(), record->request_key_));
}

void SessionStore::KeepReport(const std::shared_ptr<SessionRecord>& kept) {
  SessionRecord* const record = kept.get();
  ended_[record->sequence_] = kept;
  record->deadline_ = timers_->clock()->Now() + options_.report_retention;
  record->report_bytes_ = record->report_bytes();
  reports_.insert({record->deadline_, record});
  report_bytes_ += record->report_bytes_;
  Reports& own = reports_by_tenant_[record->tenant()];
  own.by_time.insert({record->deadline_, record});
  own.by_age[record->sequence_] = kept;
  own.bytes += record->report_bytes_;
  while (own.by_time.size() > 1 &&
         (static_cast<int64_t>(own.by_time.size()) > options_.max_reports ||
          own.bytes > options_.max_report_bytes)) {
    ForgetReport(own.by_time.begin()->second);
  }
  ForgetReports();
}

void SessionStore::End(const std::shared_ptr<SessionRecord>& record, SessionState state,
                       Ended* ended) {
  Remove(record, state);
  record->last_call_ = timers_->clock()->Now();
  ended->push_back(record);
  KeepReport(record);
  Arm();
}

void SessionStore::EndExpired(Ended* ended) {
  const absl::Time now = timers_->clock()->Now();
  while (!leases_.empty() && leases_.begin()->first <= now) {
    const SessionRecord* record = leases_.begin()->second;
    const std::shared_ptr<SessionRecord> owned = live_.at(record->sequence_);
    End(owned, SessionState::kExpired, ended);
  }
  ForgetReports();
}

void SessionStore::ForgetReports() {
  const absl::Time now = timers_->clock()->Now();
  while (!reports_.empty() && reports_.begin()->first <= now) {
    ForgetReport(reports_.begin()->second);
  }
  while (report_bytes_ > options_.all_report_bytes.value_or(report_bytes_)) {
    const auto most = std::max_element(
        reports_by_tenant_.begin(), reports_by_tenant_.end(),
        [](const auto& a, const auto& b) { return a.second.bytes < b.second.bytes; });
    ForgetReport(most->second.by_time.begin()->second);
  }
}

void SessionStore::ForgetReport(SessionRecord* record) {
  reports_.erase({record->deadline_, record});
  report_bytes_ -= record->report_bytes_;
  const auto own = reports_by_tenant_.find(record->tenant());
  own->second.by_time.erase({record->deadline_, record});
  own->second.by_age.erase(record->sequence_);
  own->second.bytes -= record->report_bytes_;
  if (own->second.by_time.empty()) reports_by_tenant_.erase(own);
  if (forget_) forget_(*record);
  ended_.erase(record->sequence_);
  sessions_.erase(Key(record->tenant(), record->id()));
}

void SessionStore::Arm() {
  absl::Time next = absl::InfiniteFuture();
  if (!leases_.empty()) next = leases_.begin()->first;
  if (!reports_.empty()) next = std::min(next, reports_.begin()->first);
  if (next == absl::InfiniteFuture() || (timer_ && timer_->first <= next)) return;
  if (timer_) timers_->Cancel(*timer_);
  timer_ = timers_->RunAt(next, [this] { Sweep(); });
}

}  // namespace nni_compression::server
