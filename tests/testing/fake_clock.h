// A clock that a test moves.
#ifndef NNI_COMPRESSION_TESTS_TESTING_FAKE_CLOCK_H_
#define NNI_COMPRESSION_TESTS_TESTING_FAKE_CLOCK_H_

#include <functional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "server/base/clock.h"
#include "server/base/mutex.h"

namespace nni_compression::testing {

// Stands still until Advance. Thread-safe.
class FakeClock : public server::Clock {
 public:
  absl::Time Now() const override {
    server::MutexLock lock(&mutex_);
    return now_;
  }

  absl::Duration SleepUntil(absl::Time time) const override {
    return time <= Now() ? absl::ZeroDuration() : absl::InfiniteDuration();
  }

  void SetListener(std::function<void()> listener) override {
    server::MutexLock lock(&listener_mutex_);
    listener_ = std::move(listener);
  }

  void Advance(absl::Duration by) {
    {
      server::MutexLock lock(&mutex_);
      now_ += by;
    }
    server::MutexLock lock(&listener_mutex_);
    if (listener_) listener_();
  }

 private:
  mutable server::Mutex mutex_;
  absl::Time now_ ABSL_GUARDED_BY(mutex_) = absl::FromUnixSeconds(1700000000);
  server::Mutex listener_mutex_;
  std::function<void()> listener_ ABSL_GUARDED_BY(listener_mutex_);
};

}  // namespace nni_compression::testing

#endif  // NNI_COMPRESSION_TESTS_TESTING_FAKE_CLOCK_H_
