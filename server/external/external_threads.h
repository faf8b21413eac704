// Threads for code that may never come back.
#ifndef NNI_COMPRESSION_SERVER_EXTERNAL_EXTERNAL_THREADS_H_
#define NNI_COMPRESSION_SERVER_EXTERNAL_EXTERNAL_THREADS_H_

#include <functional>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "server/base/mutex.h"
#include "server/base/timer_thread.h"

namespace nni_compression::server {

// How a function on an external thread ended.
enum class ExternalEnd { kDone, kLate, kStopped };

// Runs functions on threads of its own, each for one caller at a time, who waits; so there are as
// many as there were callers at once. A thread whose function is late is given up: nobody waits for
// it, now or at the end, and the function goes on with what it owns. It must therefore own all that
// it touches. Thread-safe.
class ExternalThreads {
 public:
  // `timers` outlives this. `prepare` is called on a thread before each function, with the number
  // of threads that are busy; it may be called after this has gone.
  ExternalThreads(TimerThread* timers, std::function<void(int busy)> prepare);

  // No call is under way. Threads that were given up are left alone.
  ~ExternalThreads() { Stop(); }

  // Runs `function`, which does not throw, and waits for it, for `timeout` at most.
  ExternalEnd Run(std::function<void()> function, absl::Duration timeout);

  // Ends every wait with kStopped, those to come too.
  void Stop();

 private:
  class Thread;

  std::shared_ptr<Thread> Take() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  TimerThread* const timers_;
  const std::function<void(int)> prepare_;
  Mutex mutex_;
  std::vector<std::shared_ptr<Thread>> idle_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<Thread>> busy_ ABSL_GUARDED_BY(mutex_);
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_EXTERNAL_EXTERNAL_THREADS_H_
