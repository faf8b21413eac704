// Threads for code that may never return.
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

// How the run of a function ended.
enum class ExternalEnd { kDone, kLate, kStopped };

// Runs functions on threads of its own, one for each waiting caller, so there are as many threads
// as there were concurrent callers. A thread whose function times out is abandoned: it is never
// joined, and the function continues with what it owns. A function must therefore own all that it
// uses. Thread-safe.
class ExternalThreads {
 public:
  // `timers` outlives this. `prepare` is called on a thread before each function, with the number
  // of busy threads; it may be called after this is destroyed.
  ExternalThreads(TimerThread* timers, std::function<void(int busy)> prepare);

  // No call may be running. Abandoned threads are not joined.
  ~ExternalThreads() { Stop(); }

  // Runs `function`, which does not throw, and waits for it, for `timeout` at most.
  ExternalEnd Run(std::function<void()> function, absl::Duration timeout);

  // Ends every wait with kStopped, later ones too.
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
