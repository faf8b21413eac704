#include "server/base/clock.h"

#include <algorithm>
#include <chrono>
#include <functional>

#include "absl/time/clock.h"

namespace nni_compression::server {
namespace {

class SystemClock : public Clock {
 public:
  absl::Time Now() const override {
    return start_ + absl::FromChrono(std::chrono::steady_clock::now() - steady_start_);
  }
  absl::Duration SleepUntil(absl::Time time) const override {
    // At most an hour: callers add this to a time of their own, which must not overflow.
    return std::clamp(time - Now(), absl::ZeroDuration(), absl::Hours(1));
  }
  void SetListener(std::function<void()>) override {}  // this clock never jumps

 private:
  const absl::Time start_ = absl::Now();
  const std::chrono::steady_clock::time_point steady_start_ = std::chrono::steady_clock::now();
};

}  // namespace

Clock* Clock::System() {
  static SystemClock* const clock = new SystemClock;
  return clock;
}

}  // namespace nni_compression::server
