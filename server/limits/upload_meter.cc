#include "server/limits/upload_meter.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/base/errors.h"

namespace nni_compression::server {

absl::Status UploadMeter::Add(bool first, std::optional<int64_t> limit) {
  MutexLock lock(&mutex_);
  const absl::Time now = clock_->Now();
  TurnTo(now);
  if (limit && *limit <= 0) {
    return absl::ResourceExhaustedError("the tenant's quota of uploads is 0 tensors per second");
  }
  if (limit) {
    const absl::Duration each = absl::Seconds(1) / *limit;
    const absl::Time full = std::max(full_, now) + each;
    const absl::Duration wait = full - now - absl::Seconds(1);
    if (wait > (first ? absl::ZeroDuration() : kMaxDebt)) {
      return ExhaustedFor(
          wait, absl::StrCat("the tenant's quota of uploads is ", *limit,
                             " tensors per second; retry in ", absl::FormatDuration(wait)));
    }
    full_ = full;
  }
  ++this_second_;
  return absl::OkStatus();
}

int64_t UploadMeter::rate() {
  MutexLock lock(&mutex_);
  TurnTo(clock_->Now());
  return last_second_;
}

void UploadMeter::TurnTo(absl::Time now) {
  // A debt does not last longer when the clock is set back.
  if (now < last_seen_) full_ -= last_seen_ - now;
  const int64_t seconds = absl::ToUnixSeconds(now) - absl::ToUnixSeconds(last_seen_);
  if (seconds != 0) {
    last_second_ = seconds == 1 ? this_second_ : 0;
    this_second_ = 0;
  }
  last_seen_ = now;
}

}  // namespace nni_compression::server
