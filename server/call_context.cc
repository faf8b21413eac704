#include "server/call_context.h"

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/log.h"
#include "server/status.h"

namespace nni_compression::server {
namespace {

// Failures that are the server's own get attention, the others are the caller's.
LogLevel LevelOf(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kDataLoss:
      return LogLevel::kError;
    default:
      return LogLevel::kInfo;
  }
}

}  // namespace

CallContext::~CallContext() {
  if (gate_ != nullptr) gate_->Leave();
}

grpc::Status CallContext::Finish(const absl::Status& status) {
  if (!status.ok()) {
    Log(LevelOf(status.code()), "call_failed",
        {{"method", method_},
         {"tenant", caller_.tenant},
         {"session", session_},
         {"code", absl::StatusCodeToString(status.code())},
         {"message", status.message()}});
  }
  return FinishWith(status, context_);
}

absl::StatusOr<std::unique_ptr<CallContext>> Gate::Admit(grpc::ServerContextBase* context,
                                                         absl::string_view method,
                                                         bool while_closed) {
  bool counted = false;
  absl::Status status;
  if (!while_closed) {
    MutexLock lock(&mutex_);
    if (closed_) {
      status = absl::UnavailableError("the server is draining");
    } else if (calls_ >= max_calls_) {
      status = ExhaustedFor(absl::Seconds(1),
                            absl::StrCat("the server has ", calls_, " calls, as many as it may"));
    } else {
      ++calls_;
      counted = true;
    }
  }
  std::unique_ptr<CallContext> call(new CallContext(counted ? this : nullptr, context, method));
  if (status.ok()) {
    absl::StatusOr<Caller> caller = authenticator_->Authenticate(*context, method);
    status = caller.status();
    if (caller.ok()) call->caller_ = *std::move(caller);
  }
  if (status.ok()) return call;
  return status;
}

void Gate::Close() {
  MutexLock lock(&mutex_);
  closed_ = true;
}

bool Gate::WaitUntilEmpty(absl::Duration timeout) {
  const absl::Time end = absl::Now() + timeout;
  MutexLock lock(&mutex_);
  while (calls_ > 0 && absl::Now() < end) changed_.WaitFor(&mutex_, end - absl::Now());
  return calls_ == 0;
}

void Gate::Leave() {
  MutexLock lock(&mutex_);
  if (--calls_ == 0) changed_.NotifyAll();
}

}  // namespace nni_compression::server
