// One thread for timers: leases, stalled peers, deadlines.
#ifndef NNI_COMPRESSION_SERVER_BASE_TIMER_THREAD_H_
#define NNI_COMPRESSION_SERVER_BASE_TIMER_THREAD_H_

#include <cstdint>
#include <functional>
#include <map>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "server/base/clock.h"
#include "server/base/mutex.h"

namespace nni_compression::server {

// Runs short functions one after the other. Thread-safe. Functions may call every method except
// Stop; they must not compute or block, since that delays all other timers.
class TimerThread {
 public:
  // `clock` outlives the thread.
  explicit TimerThread(Clock* clock);

  ~TimerThread() { Stop(); }

  // Drops the functions that are not due yet, and all later ones; nothing runs when it returns.
  void Stop();

  using Id = std::pair<absl::Time, uint64_t>;

  // Runs `function` when the clock reaches `time`, or at once if it has.
  Id RunAt(absl::Time time, std::function<void()> function);
  void Run(std::function<void()> function);

  // Returns whether the function was still pending; it is then not run. A function that is running
  // continues.
  bool Cancel(const Id& id);

  Clock* clock() const { return clock_; }

 private:
  void Loop();

  Clock* const clock_;
  Mutex mutex_;
  CondVar changed_;
  std::map<Id, std::function<void()>> functions_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: it uses the members above
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_BASE_TIMER_THREAD_H_
