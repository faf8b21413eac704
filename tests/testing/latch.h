// Events that threads of a test wait for.
#ifndef NNI_COMPRESSION_TESTS_TESTING_LATCH_H_
#define NNI_COMPRESSION_TESTS_TESTING_LATCH_H_

#include <functional>

#include "absl/base/thread_annotations.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/base/mutex.h"

namespace nni_compression::testing {

// Something that happens once. Thread-safe.
class Latch {
 public:
  void Set() {
    server::MutexLock lock(&mutex_);
    set_ = true;
    changed_.NotifyAll();
  }

  void Wait() {
    server::MutexLock lock(&mutex_);
    while (!set_) changed_.Wait(&mutex_);
  }

  bool IsSet() {
    server::MutexLock lock(&mutex_);
    return set_;
  }

 private:
  server::Mutex mutex_;
  server::CondVar changed_;
  bool set_ ABSL_GUARDED_BY(mutex_) = false;
};

// Whether `condition` becomes true within half a minute; for what no event tells.
inline bool Eventually(const std::function<bool()>& condition) {
  const absl::Time end = absl::Now() + absl::Seconds(30);
  while (!condition()) {
    if (absl::Now() > end) return false;
    absl::SleepFor(absl::Milliseconds(1));
  }
  return true;
}

}  // namespace nni_compression::testing

#endif  // NNI_COMPRESSION_TESTS_TESTING_LATCH_H_
