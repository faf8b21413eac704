#include "server/external/external_algorithm.h"

#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "compression/messages/exception_text.h"
#include "server/base/errors.h"
#include "server/base/log.h"
#include "server/external/guarded_compressor.h"

namespace nni_compression::server {
namespace {

// Sessions of one algorithm that may run at a time, so that the others continue when one hangs. The
// threads wait and do not compute, so there may be more of them than cores.
constexpr int kSessionsAtATime = 4;

}  // namespace

ExternalHost::ExternalHost(std::string name, absl::Duration timeout, TimerThread* timers,
                           std::function<void(int)> prepare)
    : name_(std::move(name)), timeout_(timeout), threads_(timers, std::move(prepare)) {}

absl::Status ExternalHost::Run(const std::string& what, std::function<absl::Status()> function) {
  if (const std::string why = refusal(); !why.empty()) {
    return absl::FailedPreconditionError(why);
  }
  auto status = std::make_shared<absl::Status>();
  // Moved all the way, so that what the function owns is destroyed on the external thread.
  auto run = [status, function = std::move(function)] { *status = CatchExceptions(function); };
  switch (threads_.Run(std::move(run), timeout_)) {
    case ExternalEnd::kDone:
      if (status->ok()) return absl::OkStatus();
      if (const auto traceback = status->GetPayload(compression::kTracebackPayload)) {
        Log(LogLevel::kDebug, "algorithm_traceback",
            {{"algorithm", name_}, {"on", what}, {"traceback", std::string(*traceback)}});
      }
      return absl::Status(status->code(),
                          absl::StrCat(name_, " on ", what, ": ", status->message()));
    case ExternalEnd::kStopped:
      return absl::UnavailableError(
          absl::StrCat("the server is stopping; ", name_, " was running for ", what));
    case ExternalEnd::kLate:
      break;
  }
  Refuse(what);
  return absl::DeadlineExceededError(
      absl::StrCat(name_, " on ", what, ": no answer within ", absl::FormatDuration(timeout_),
                   "; the algorithm is disabled until the server is restarted"));
}

void ExternalHost::Refuse(const std::string& what) {
  {
    MutexLock lock(&mutex_);
    if (!refusal_.empty()) return;
    refusal_ = absl::StrCat("the algorithm ", name_,
                            " is disabled until the server is restarted: no answer on ", what,
                            " within ", absl::FormatDuration(timeout_));
  }
  // The only place that disables an algorithm.
  Log(LogLevel::kError, "algorithm_refused",
      {{"algorithm", name_}, {"on", what}, {"after", absl::FormatDuration(timeout_)}});
}

std::string ExternalHost::refusal() const {
  MutexLock lock(&mutex_);
  return refusal_;
}

ExternalAlgorithms::ExternalAlgorithms(const compression::Registry& all, absl::Duration timeout,
                                       TimerThread* timers,
                                       const std::function<void(int)>& prepare) {
  for (const compression::AlgorithmInfo* info : all.List()) {
    if (info->source.empty()) {
      registry_.Add(*info).IgnoreError();  // names are unique in `all`
      continue;
    }
    auto host = std::make_shared<ExternalHost>(info->name, timeout, timers, prepare);
    registry_.Add(Guarded(*info, host)).IgnoreError();
    entries_[info->name] = {std::move(host), std::make_unique<Executor>(kSessionsAtATime)};
  }
}

ExternalAlgorithms::~ExternalAlgorithms() {
  Stop();
  Join();
}

Executor* ExternalAlgorithms::ExecutorOf(absl::string_view algorithm) const {
  const auto it = entries_.find(std::string(algorithm));
  return it == entries_.end() ? nullptr : it->second.executor.get();
}

std::string ExternalAlgorithms::Refusal(absl::string_view algorithm) const {
  const auto it = entries_.find(std::string(algorithm));
  return it == entries_.end() ? "" : it->second.host->refusal();
}

void ExternalAlgorithms::Stop() {
  for (const auto& entry : entries_) entry.second.host->Stop();
}

void ExternalAlgorithms::Join() {
  for (auto& entry : entries_) entry.second.executor->Stop();
}

}  // namespace nni_compression::server
