#include "server/clock.h"

#include <algorithm>
#include <functional>

#include "absl/time/clock.h"

namespace nni_compression::server {
namespace {

class SystemClock : public Clock {
 public:
  absl::Time Now() const override { return absl::Now(); }
  absl::Duration SleepUntil(absl::Time time) const override {
    // An hour at most: the wall clock may be set while a thread sleeps.
    return std::clamp(time - absl::Now(), absl::ZeroDuration(), absl::Hours(1));
  }
  void SetListener(std::function<void()>) override {}  // it does not jump
};

}  // namespace

Clock* Clock::System() {
  static SystemClock* const clock = new SystemClock;
  return clock;
}

}  // namespace nni_compression::server
