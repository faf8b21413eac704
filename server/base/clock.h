// Time behind an interface, so that tests can control it.
#ifndef NNI_COMPRESSION_SERVER_BASE_CLOCK_H_
#define NNI_COMPRESSION_SERVER_BASE_CLOCK_H_

#include <functional>

#include "absl/time/time.h"

namespace nni_compression::server {

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;

  // Starts at the system time of its first use and advances monotonically from there: setting the
  // system clock expires no lease and stalls no call. Never destroyed.
  static Clock* System();

  virtual absl::Time Now() const = 0;

  // How long a thread may sleep, in real time, until this clock reaches `time`. A stopped clock
  // returns InfiniteDuration and calls the listener when it moves.
  virtual absl::Duration SleepUntil(absl::Time time) const = 0;

  // `listener` is called, on any thread, whenever the clock jumps. Null removes it; it is not
  // called after that. A clock has at most one listener.
  virtual void SetListener(std::function<void()> listener) = 0;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_BASE_CLOCK_H_
