// The rate limit of a tenant's uploads.
#ifndef NNI_COMPRESSION_SERVER_LIMITS_UPLOAD_METER_H_
#define NNI_COMPRESSION_SERVER_LIMITS_UPLOAD_METER_H_

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/base/clock.h"
#include "server/base/mutex.h"

namespace nni_compression::server {

// Token bucket over the tensors of one tenant, with a burst of one second. A call that has begun
// may overdraw it by up to kMaxDebt, so that a Step is not cut in half; later calls wait until the
// debt is paid. Thread-safe.
class UploadMeter {
 public:
  // How far running calls may overdraw the bucket.
  static constexpr absl::Duration kMaxDebt = absl::Minutes(1);

  // `clock` outlives the meter.
  explicit UploadMeter(const Clock* clock) : clock_(clock) {}

  // Counts a tensor; `first` of its call. Above `limit` tensors per second a retryable
  // RESOURCE_EXHAUSTED, with nothing counted.
  absl::Status Add(bool first, std::optional<int64_t> limit);

  // Tensors in the last whole second.
  int64_t rate();

 private:
  void TurnTo(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Clock* const clock_;
  Mutex mutex_;
  absl::Time last_seen_ ABSL_GUARDED_BY(mutex_);  // the latest time read from the clock
  // When the bucket is full again: each tensor postpones it by 1 / limit seconds.
  absl::Time full_ ABSL_GUARDED_BY(mutex_);
  int64_t this_second_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t last_second_ ABSL_GUARDED_BY(mutex_) = 0;
};

// A meter and its limit. Without a meter nothing is counted.
struct UploadQuota {
  std::shared_ptr<UploadMeter> meter;
  std::optional<int64_t> limit;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_LIMITS_UPLOAD_METER_H_
