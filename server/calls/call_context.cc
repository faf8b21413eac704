#include "server/calls/call_context.h"

#include <algorithm>
#include <initializer_list>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "compression/messages/suggest.h"
#include "server/base/clock.h"
#include "server/base/errors.h"
#include "server/base/log.h"
#include "server/convert/call_trace.h"
#include "server/convert/grpc_status.h"

namespace nni_compression::server {
namespace {

// The server's own failures are errors; those that callers cause are warnings or less.
LogLevel LevelOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kOk:
      return LogLevel::kDebug;
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kDataLoss:
      return LogLevel::kError;
    default:
      return LogLevel::kInfo;
  }
}

// A caller without valid credentials is identified by its address only.
void LogRefusedCall(const grpc::ServerContextBase& context, absl::string_view method,
                    const std::string& tenant, const absl::Status& status) {
  const LogLevel level = tenant.empty() ? LogLevel::kWarning : LogLevel::kInfo;
  if (!IsLogged(level)) return;
  const std::string peer = context.peer();
  // Without the port of "ipv4:10.0.0.1:50000", which differs between connections.
  const std::string address = peer.substr(0, std::max(peer.find(':'), peer.rfind(':')));
  LogLimited(level, "call_refused", tenant.empty() ? address : tenant,
             {{"method", method},
              {"peer", peer},
              {"tenant", tenant},
              {"code", absl::StatusCodeToString(status.code())},
              {"message", status.message()}});
}

}  // namespace

CallContext::~CallContext() { gate_->Leave(caller_.tenant, kind_); }

absl::Status CallContext::CheckRevision(absl::string_view session, uint64_t stored) const {
  const auto& metadata = context_->client_metadata();
  const auto it = metadata.find(kRevisionKey);
  if (it == metadata.end()) return absl::OkStatus();
  const absl::string_view text(it->second.data(), it->second.size());
  uint64_t told = 0;
  if (!absl::SimpleAtoi(text, &told)) {
    return absl::InvalidArgumentError(absl::StrCat("the metadata ", kRevisionKey, " is ",
                                                   compression::Quoted(text),
                                                   "; it must be a number in [0, 2^64)"));
  }
  if (told <= stored) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat(
      "session ", session, " is stored at revision ", stored, ", older than revision ", told,
      " that its trainer has seen: the data directory is a restored backup, or the machine failed "
      "under ",
      "--durability=process. Bind a new session from the trainer's checkpoint"));
}

void CallContext::ReachedRevision(uint64_t revision) {
  MutexLock lock(&mutex_);
  revision_ = std::max(revision_, revision);
}

absl::Duration CallContext::Count(absl::StatusCode code) {
  const absl::Duration duration = absl::FromChrono(std::chrono::steady_clock::now() - start_);
  metrics_->Ended(code, duration);
  return duration;
}

grpc::Status CallContext::Finish(const absl::Status& status) {
  const absl::Duration duration = Count(status.code());
  const LogLevel level = LevelOf(status.code());
  if (IsLogged(level)) {
    const CallTrace trace = ReadCallTrace(*context_);
    const auto log = [&](std::initializer_list<LogField> fields) {
      if (status.ok()) return Log(level, "call", fields);
      LogLimited(level, "call_failed", caller_.tenant, fields);
    };
    log({{"method", method_},
         {"tenant", caller_.tenant},
         {"session", session()},
         {"duration", absl::FormatDuration(duration)},
         {"request_id", trace.request_id},
         {"trace_id", trace.trace_id},
         {"parent_id", trace.parent_id},
         {"code", absl::StatusCodeToString(status.code())},
         {"message", status.message()}});
  }
  {
    MutexLock lock(&mutex_);
    if (revision_ > 0) context_->AddTrailingMetadata(kRevisionKey, absl::StrCat(revision_));
  }
  return FinishWith(status, context_);
}

absl::StatusOr<std::unique_ptr<CallContext>> Gate::Admit(grpc::ServerContextBase* context,
                                                         absl::string_view method, CallKind kind) {
  MethodMetrics* const metrics = metrics_->Find(method);
  absl::StatusOr<Caller> caller = authenticator_->Authenticate(*context, method);
  const absl::Status status = caller.ok() ? Enter(*caller, kind) : caller.status();
  if (!status.ok()) {
    metrics->Ended(status.code(), absl::ZeroDuration());
    LogRefusedCall(*context, method, caller.ok() ? caller->tenant : "", status);
    return status;
  }
  std::unique_ptr<CallContext> call(new CallContext(this, kind, context, method, metrics));
  {
    MutexLock lock(&mutex_);
    const Tenant& tenant = TenantOf(caller->tenant);
    call->account_ = tenant.account;
    call->uploads_ = tenant.uploads;
  }
  call->caller_ = *std::move(caller);
  return call;
}

absl::Status Gate::Enter(const Caller& caller, CallKind kind) {
  if (kind == CallKind::kProbe) return absl::OkStatus();
  MutexLock lock(&mutex_);
  if (closed_ && kind == CallKind::kCall) return absl::UnavailableError("the server is draining");
  if (calls_ >= max_calls_) {
    return ExhaustedFor(kRetryWait, absl::StrCat("the server runs ", calls_, " calls; at most ",
                                                 max_calls_, " may run"));
  }
  int64_t& calls = TenantOf(caller.tenant).calls;
  if (const std::optional<int64_t> limit = caller.quota.calls; limit && calls >= *limit) {
    return QuotaExhausted("calls", calls, 1, *limit,
                          *limit > 0 ? std::optional(kRetryWait) : std::nullopt);
  }
  ++calls;
  ++calls_;
  if (kind == CallKind::kWatch) ++watches_;
  return absl::OkStatus();
}

std::shared_ptr<MemoryAccount> Gate::Account(const std::string& tenant) {
  MutexLock lock(&mutex_);
  return TenantOf(tenant).account;
}

std::map<std::string, Gate::Use> Gate::Uses() const {
  MutexLock lock(&mutex_);
  std::map<std::string, Use> uses;
  for (const auto& [name, tenant] : tenants_) {
    uses[name] = {tenant.calls, tenant.account->bytes(), tenant.uploads->rate()};
  }
  return uses;
}

void Gate::Close() {
  MutexLock lock(&mutex_);
  closed_ = true;
}

bool Gate::open() const {
  MutexLock lock(&mutex_);
  return !closed_;
}

int Gate::calls() const {
  MutexLock lock(&mutex_);
  return calls_;
}

bool Gate::WaitUntilEmpty(absl::Duration timeout) {
  const absl::Time end = Clock::System()->Now() + timeout;
  MutexLock lock(&mutex_);
  while (calls_ > watches_ && Clock::System()->Now() < end) {
    changed_.WaitFor(&mutex_, end - Clock::System()->Now());
  }
  return calls_ == watches_;
}

void Gate::Leave(const std::string& tenant, CallKind kind) {
  if (kind == CallKind::kProbe) return;
  MutexLock lock(&mutex_);
  --TenantOf(tenant).calls;
  --calls_;
  if (kind == CallKind::kWatch) --watches_;
  if (calls_ == watches_) changed_.NotifyAll();
}

}  // namespace nni_compression::server
