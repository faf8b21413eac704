#include "client/cpp/retry.h"

#include <algorithm>

#include "absl/random/random.h"
#include "absl/strings/numbers.h"

namespace nni_compression::internal {
namespace {

// Between half of `duration` and all of it, so that many clients do not return as one.
absl::Duration Jittered(absl::Duration duration) {
  thread_local absl::BitGen random;
  return duration * absl::Uniform(random, 0.5, 1.0);
}

}  // namespace

std::optional<absl::Duration> Retry::NextDelay(const Outcome& outcome, absl::Time now) {
  const absl::StatusCode code = outcome.status.code();
  if (outcome.progress) {
    backoff_ = options_.initial_backoff;
    unavailable_since_.reset();
  }
  std::optional<absl::Duration> delay;
  if (outcome.pushback) {
    int64_t milliseconds = 0;
    if (!absl::SimpleAtoi(*outcome.pushback, &milliseconds) || milliseconds < 0)
      return std::nullopt;
    if (code == absl::StatusCode::kResourceExhausted || code == absl::StatusCode::kUnavailable) {
      delay = absl::Milliseconds(milliseconds);
    }
  } else if (code == absl::StatusCode::kUnavailable) {
    if (!unavailable_since_) unavailable_since_ = now;
    delay = Jittered(backoff_);
    backoff_ = std::min(backoff_ * options_.multiplier, options_.max_backoff);
    if (now + *delay - *unavailable_since_ > options_.time_limit) return std::nullopt;
  }
  if (!delay || now + *delay >= deadline_) return std::nullopt;
  return delay;
}

}  // namespace nni_compression::internal
