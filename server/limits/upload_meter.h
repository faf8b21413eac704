// How many tensors a tenant uploads.
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

// Counts the tensors of one tenant, and lets so many pass a second: a bucket that holds a second's
// worth. The tensors of a call belong together, a step's above all, so a call that was let begin
// may run up a debt, which the calls after it wait for. Thread-safe.
class UploadMeter {
 public:
  // How far calls that run may get ahead of the limit.
  static constexpr absl::Duration kMaxDebt = absl::Minutes(1);

  // `clock` outlives the meter.
  explicit UploadMeter(const Clock* clock) : clock_(clock) {}

  // Counts a tensor; `first` of its call. RESOURCE_EXHAUSTED, with nothing counted and the time
  // after which a call may begin, above `limit` tensors a second.
  absl::Status Add(bool first, std::optional<int64_t> limit);

  // Tensors in the last whole second.
  int64_t rate();

 private:
  void TurnTo(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Clock* const clock_;
  Mutex mutex_;
  absl::Time seen_ ABSL_GUARDED_BY(mutex_);  // on the clock, last
  // When the bucket is full again: each tensor moves it on by the time that it has at the limit.
  absl::Time full_ ABSL_GUARDED_BY(mutex_);
  int64_t this_second_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t last_second_ ABSL_GUARDED_BY(mutex_) = 0;
};

// A meter, and how much it lets pass. Without a meter nothing is counted.
struct UploadShare {
  std::shared_ptr<UploadMeter> meter;
  std::optional<int64_t> limit;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_LIMITS_UPLOAD_METER_H_
