#include "server/sessions/durable_sessions.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "compression/session/state.h"
#include "server/base/errors.h"
#include "server/base/log.h"
#include "server/convert/convert.h"
#include "server/limits/parsed_size.h"
#include "server/sessions/session_memory.h"
#include "server/sessions/session_report.h"

namespace nni_compression::server {

namespace v1 = ::nni::compression::v1;

using compression::Session;

namespace {

// Readers mostly wait for the disk.
constexpr int kReaders = 2;

// The highest valid sequence number; counting up to it would take centuries.
constexpr uint64_t kLastSequence = uint64_t{1} << 62;

SessionKey KeyOf(const SessionRecord& record) { return {record.tenant(), record.id()}; }

// Logs the whole error of a session that cannot be read. `limited` where callers can cause it.
void LogError(const SessionKey& key, const absl::Status& error, bool limited = false) {
  const bool damaged = absl::IsDataLoss(error);
  const LogLevel level = damaged ? LogLevel::kError : LogLevel::kWarning;
  const char* const event = damaged ? "session_damaged" : "session_not_read";
  const std::initializer_list<LogField> fields = {
      {"session", key.second}, {"tenant", key.first}, {"error", error.message()}};
  if (limited) return LogLimited(level, event, key.first, fields);
  Log(level, event, fields);
}

// The error that callers get for one of the storage, which names files of this machine.
absl::Status ForCallers(const absl::Status& error) {
  switch (error.code()) {
    case absl::StatusCode::kResourceExhausted:
      return absl::ResourceExhaustedError(
          "the server's storage is full or not writable; see the server's log");
    case absl::StatusCode::kDataLoss:
      return absl::DataLossError("the session's stored state is damaged; see the server's log");
    case absl::StatusCode::kInternal:
      return absl::InternalError("the server's storage failed; see the server's log");
    default:
      return error;
  }
}

DurableSessions::Done ForCallers(DurableSessions::Done done) {
  return [done = std::move(done)](const absl::Status& status) { done(ForCallers(status)); };
}

absl::Status Damaged(const absl::Status& status) {
  return absl::DataLossError(
      absl::StrCat("the session's stored state cannot be read: ", status.message()));
}

// Of a session that was admitted once: charged to its tenant, whatever the tenant's quota is now.
SessionMemory MemoryOfTenant(const DurableSessions::Environment& environment,
                             const SessionRecord& record) {
  return SessionMemory(environment.budget, {environment.account_of(record.tenant()), std::nullopt});
}

absl::Time ToTime(const google::protobuf::Timestamp& time) {
  return absl::FromUnixSeconds(time.seconds()) + absl::Nanoseconds(time.nanos());
}

}  // namespace

DurableSessions::DurableSessions(const Environment& environment)
    : environment_(environment),
      readers_(std::make_unique<Executor>(kReaders)),
      commits_(std::make_unique<CommitQueue>(
          environment.storage,
          [this](const auto& record, const auto& error) { Rollback(record, error); })) {}

absl::Status DurableSessions::Recover() {
  const absl::Time start = absl::Now();
  const absl::StatusOr<std::vector<CatalogueRow>> rows = environment_.storage->List();
  if (!rows.ok()) return rows.status();
  std::vector<const CatalogueRow*> out_of_order;
  uint64_t last = 0;
  for (const CatalogueRow& row : *rows) {
    if (row.sequence <= last || row.sequence > kLastSequence) {
      out_of_order.push_back(&row);
      continue;
    }
    last = row.sequence;
    if (absl::Status status = RecoverOne(row); !status.ok()) LogError(row.key, status);
  }
  // Their sequence is damaged. If nothing else is, they count as the youngest sessions from now on.
  for (const CatalogueRow* row : out_of_order) {
    CatalogueRow repaired = *row;
    repaired.sequence = ++last;
    LogError(row->key, absl::DataLossError(absl::StrCat("its sequence is ",
                                                        static_cast<int64_t>(row->sequence),
                                                        ", a duplicate or out of range")));
    if (absl::Status status = RecoverOne(repaired); !status.ok()) LogError(row->key, status);
  }
  Log(LogLevel::kInfo, "sessions_recovered",
      {{"live", environment_.sessions->live()},
       {"stored", rows->size()},
       {"time", absl::FormatDuration(absl::Now() - start)}});
  return absl::OkStatus();
}

absl::Status DurableSessions::RecoverOne(const CatalogueRow& row) {
  v1::Session entry;
  if (!entry.ParseFromString(row.entry) || entry.id() != row.key.second) {
    return absl::DataLossError("its catalogue entry is not a valid Session");
  }
  // Even if there is no memory now: the session existed before.
  SessionMemory memory(environment_.budget, {});
  (void)memory.Reserve(EntryBytes(entry), "the session's catalogue entry");
  const auto record = std::make_shared<SessionRecord>(
      row.key.first, entry, Strand::Create(environment_.executor_of(entry.algorithm())),
      std::move(memory));
  SessionStore::Stored stored;
  stored.sequence = row.sequence;
  if (row.ended) {
    stored.state =
        entry.state() == v1::SESSION_STATE_EXPIRED ? SessionState::kExpired : SessionState::kClosed;
  }
  stored.lease = row.lease;
  stored.created = ToTime(entry.create_time());
  stored.last_call = ToTime(entry.last_call_time());
  stored.request_id = row.request_id;
  stored.fingerprint = row.fingerprint;
  environment_.sessions->Restore(record, stored);
  // The session exists, so that its trainer gets DATA_LOSS rather than NOT_FOUND, and can close it.
  return row.damaged ? absl::DataLossError("its catalogue row is damaged") : absl::OkStatus();
}

void DurableSessions::Stop() {
  std::unique_ptr<Executor> readers;
  {
    MutexLock lock(&mutex_);
    readers = std::move(readers_);
  }
  readers.reset();  // finishes the running reads
  commits_->Flush();
  MutexLock lock(&mutex_);
  stopped_ = true;
}

std::string DurableSessions::Entry(const SessionRecord& record) const {
  v1::Session entry;
  DescribeSession(record, environment_.sessions->Times(record), &entry);
  return entry.SerializeAsString();
}

void DurableSessions::Create(const std::shared_ptr<SessionRecord>& record,
                             const v1::BindModelRequest& request, absl::string_view fingerprint,
                             Done done) {
  Session& session = *record->session();
  v1::BindModelRequest binding = request;
  // These are stored separately; without them the trials of one model have equal bindings.
  binding.clear_request_id();
  binding.clear_labels();
  binding.clear_lease();
  binding.clear_masks();
  binding.clear_memory();
  SessionChange change;
  change.key = KeyOf(*record);
  change.create.emplace();
  change.create->binding = binding.SerializeAsString();
  CatalogueRow& row = change.create->row;
  row.key = change.key;
  row.sequence = environment_.sessions->Sequence(*record);
  row.lease = environment_.sessions->Times(*record).lease;
  row.request_id = request.request_id();
  row.fingerprint = std::string(fingerprint);
  row.entry = Entry(*record);
  record->stored_summary = record->summary();
  change.global = session.SaveGlobal();
  for (const int i : session.TakeChanges().layers) {  // masks and Memory of the request
    change.layers[i] = [record, i, state = session.state(i)] {
      return compression::EncodeLayer(record->layer(i), state);
    };
  }
  commits_->Write(record, std::move(change), ForCallers(std::move(done)));
}

void DurableSessions::Save(const std::shared_ptr<SessionRecord>& record, Session& session,
                           Saved saved) {
  const Session::Changes changes = session.TakeChanges();
  const SessionRecord::Summary summary = record->summary();
  const bool new_results = !std::exchange(record->results_stored, true);
  if (!changes.empty() || new_results) ++record->revision;
  Done done = ForCallers(
      [revision = record->revision.load(), saved = std::move(saved)](const absl::Status& status) {
        saved(status.ok() ? absl::StatusOr<uint64_t>(revision) : status);
      });
  if (changes.empty() && summary == record->stored_summary && !new_results) {
    return commits_->WaitForWrites(record, std::move(done));
  }
  record->stored_summary = summary;
  SessionChange change;
  change.key = KeyOf(*record);
  change.entry = Entry(*record);
  if (changes.global) change.global = session.SaveGlobal();
  for (const int i : changes.layers) {
    change.layers[i] = [record, i, state = session.state(i)] {
      return compression::EncodeLayer(record->layer(i), state);
    };
  }
  commits_->Write(record, std::move(change), std::move(done));
}

void DurableSessions::End(const std::shared_ptr<SessionRecord>& record, const v1::Session& report,
                          Done done) {
  record->BeginEnd();
  v1::Session entry = report;
  entry.clear_layers();
  entry.clear_config_list();
  SessionChange change;
  change.key = KeyOf(*record);
  change.entry = entry.SerializeAsString();
  change.report = report.SerializeAsString();
  commits_->Write(record, std::move(change), ForCallers(std::move(done)));
}

void DurableSessions::Forget(const SessionRecord& record) {
  SessionChange change;
  change.key = KeyOf(record);
  change.erase = true;
  commits_->Write(nullptr, std::move(change), [id = record.id()](const absl::Status& status) {
    if (status.ok()) return;
    Log(LogLevel::kWarning, "session_not_erased", {{"session", id}, {"error", status.message()}});
  });
}

void DurableSessions::Load(const std::shared_ptr<SessionRecord>& record, Done done) {
  absl::Status status;
  if (!record->loaded()) {
    MutexLock lock(&mutex_);
    if (readers_ != nullptr && !record->loaded()) {  // it may have been loaded in the meantime
      std::vector<Done>& waiting = loading_[record.get()];
      waiting.push_back(std::move(done));
      if (waiting.size() == 1) readers_->Schedule([this, record] { Read(record); });
      return;
    }
    if (!record->loaded()) status = absl::UnavailableError("the server is stopping");
  }
  done(status);
}

void DurableSessions::Read(const std::shared_ptr<SessionRecord>& record) {
  const SessionKey key = KeyOf(*record);
  absl::Status error;
  std::function<absl::Status()> revive;
  const auto reading = std::make_shared<SessionMemory>(MemoryOfTenant(environment_, *record));
  const bool active = record->state() == SessionState::kActive;
  const int64_t state = active ? std::max<int64_t>(record->summary().state_bytes, 0) : 0;
  const absl::Status room = reading->Reserve(state, "the session's stored state");
  if (!room.ok()) {
    revive = [room] { return room; };
  } else if (active) {
    auto stored = std::make_shared<absl::StatusOr<StoredSession>>(environment_.storage->Load(key));
    error = stored->status();
    revive = [this, record, stored, reading] {
      return RestoreSession(*record, *std::move(*stored), std::move(*reading));
    };
  } else {
    absl::StatusOr<std::string> report = environment_.storage->LoadReport(key);
    error = report.status();
    revive = [this, record, report = std::move(report)] { return RestoreReport(*record, *report); };
  }
  record->strand().Post(
      [this, record, error, revive = std::move(revive), reading] {
        if (record->loaded()) return FinishLoad(record, absl::OkStatus());
        const absl::Status status = error.ok() ? CatchExceptions(revive) : error;
        const bool failed = !error.ok() && !absl::IsNotFound(error);  // NOT_FOUND: it was closed
        if (failed || absl::IsDataLoss(status)) LogError(KeyOf(*record), status, /*limited=*/true);
        FinishLoad(record, error.ok() ? status : ForCallers(error));
      },
      Work::kLong);
}

void DurableSessions::FinishLoad(const std::shared_ptr<SessionRecord>& record,
                                 const absl::Status& status) {
  std::vector<Done> waiting;
  {
    MutexLock lock(&mutex_);
    const auto it = loading_.find(record.get());
    waiting = std::move(it->second);
    loading_.erase(it);
  }
  for (const Done& done : waiting) done(status);
}

absl::Status DurableSessions::RestoreSession(SessionRecord& record, StoredSession stored,
                                             SessionMemory reading) {
  v1::Session entry;
  if (!entry.ParseFromString(stored.entry)) {
    return absl::DataLossError("the stored catalogue entry is not a valid Session");
  }
  v1::BindModelRequest request;
  if (!request.ParseFromString(stored.binding)) {
    return absl::DataLossError("the stored binding is not a valid BindModelRequest");
  }
  SessionMemory memory = MemoryOfTenant(environment_, record);
  Results results(entry.results().begin(), entry.results().end());
  const int64_t binding_bytes = BindingBytes(request) + ResultsBytes(results);
  if (absl::Status s = memory.Reserve(binding_bytes, "the session's layers"); !s.ok()) return s;
  SessionMemory patterns = MemoryOfTenant(environment_, record);
  if (absl::Status s = patterns.Reserve(PatternBytes(request), "the patterns of config_list");
      !s.ok()) {
    return s;
  }
  absl::StatusOr<compression::Binding> binding = ToBinding(request);
  if (!binding.ok()) return Damaged(binding.status());
  const auto algorithm = environment_.registry->Find(binding->algorithm);
  if (!algorithm.ok()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the session was bound by a server with other algorithms: ", algorithm.status().message()));
  }
  auto session = Session::Bind(*environment_.registry, *std::move(binding));
  if (!session.ok() && !(*algorithm)->source.empty()) {  // the plugin or script may have changed
    return absl::FailedPreconditionError(
        absl::StrCat("the session cannot be bound again: ", session.status().message()));
  }
  if (!session.ok()) return Damaged(session.status());
  // Records are freed as they are decoded, so both are counted once: as the masks and scales, which
  // are counted in any case, and until the session counts its growth, as what exceeds them.
  reading = {};
  const int64_t answer_bytes = AnswerBytes(**session);
  if (absl::Status s = memory.Reserve(answer_bytes, "the session's masks and scales"); !s.ok()) {
    return s;
  }
  SessionMemory decoding = MemoryOfTenant(environment_, record);
  int64_t stored_bytes = 0;
  for (const auto& [i, layer] : stored.layers) stored_bytes += static_cast<int64_t>(layer.size());
  if (absl::Status s = decoding.Reserve(std::max<int64_t>(stored_bytes - answer_bytes, 0),
                                        "the session's stored state");
      !s.ok()) {
    return s;
  }
  std::vector<std::string> layers(record.layer_count());
  for (int i = 0; i < record.layer_count(); ++i) {
    const auto it = stored.layers.find(i);
    layers[i] = it != stored.layers.end() ? std::move(it->second) : (*session)->SaveLayer(i);
  }
  if (absl::Status s = (*session)->Load(stored.global, std::move(layers)); !s.ok()) {
    return Damaged(s);
  }
  const SessionRecord::Summary summary = Summarize(**session);
  decoding = {};
  absl::Status loaded = record.Load(*std::move(session), std::move(memory), binding_bytes);
  if (!loaded.ok()) return loaded;
  record.SetSummary(summary);
  record.stored_summary = summary;
  record.RestoreResults(std::move(results));
  record.revision = entry.revision();  // drops the counts of failed writes
  return absl::OkStatus();
}

absl::Status DurableSessions::RestoreReport(SessionRecord& record, const std::string& bytes) {
  v1::Session report;
  // Charged to the server, like the reports of sessions that have just ended.
  SessionMemory memory(environment_.budget, {});
  const int64_t size = ParsedSize(report, bytes);
  if (absl::Status s = memory.Reserve(size, "the session's last report"); !s.ok()) return s;
  if (!report.ParseFromString(bytes)) {
    return absl::DataLossError("the stored report is not a valid Session");
  }
  record.KeepReport(std::move(report), std::move(memory));
  return absl::OkStatus();
}

void DurableSessions::Rollback(const std::shared_ptr<SessionRecord>& record,
                               const absl::Status& error) {
  // NOT_FOUND: the session was closed during the call, so nothing is lost.
  if (!absl::IsNotFound(error)) {
    LogLimited(
        LogLevel::kError, "session_not_saved", record->tenant(),
        {{"session", record->id()}, {"tenant", record->tenant()}, {"error", error.message()}});
  }
  MutexLock lock(&mutex_);
  if (stopped_) return;  // the executor is gone
  // The last report is written from the state in memory, which includes all answered changes.
  const bool ended = absl::IsNotFound(error) || record->state() != SessionState::kActive;
  if (!ended) record->Invalidate();
  record->strand().Post([this, record, error, ended] {
    if (!ended && record->state() == SessionState::kActive) record->Unload(ForCallers(error));
    commits_->ClearError(record.get());
  });
}

}  // namespace nni_compression::server
