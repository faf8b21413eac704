// Time, so that tests can move it.
#ifndef NNI_COMPRESSION_SERVER_BASE_CLOCK_H_
#define NNI_COMPRESSION_SERVER_BASE_CLOCK_H_

#include <functional>

#include "absl/time/time.h"

namespace nni_compression::server {

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;

  // The machine's time when this was first asked for, and on from there evenly: somebody who sets
  // the machine's clock, by an hour or a year, ends no lease and stalls nothing. Lives for ever.
  static Clock* System();

  virtual absl::Time Now() const = 0;

  // How long a thread may sleep, in real time, until this clock shows `time`. A clock that stands
  // still answers InfiniteDuration, and calls the listener when it moves.
  virtual absl::Duration SleepUntil(absl::Time time) const = 0;

  // `listener` is called, on any thread, whenever the clock jumps. Null removes it; after that it
  // is not called any more. A clock has one listener at a time.
  virtual void SetListener(std::function<void()> listener) = 0;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_BASE_CLOCK_H_
