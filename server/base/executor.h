// The threads that compute.
#ifndef NNI_COMPRESSION_SERVER_BASE_EXECUTOR_H_
#define NNI_COMPRESSION_SERVER_BASE_EXECUTOR_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "server/base/mutex.h"

namespace nni_compression::server {

// How long a function takes: kLong is what computes on megabytes. kIdle is work that nobody waits
// for; it takes a few milliseconds at a time.
enum class Work { kShort, kLong, kIdle };

// A fixed number of threads that take the oldest work there is. Long work, which spreads over the
// cores by itself, never takes the last of several threads, so that a small layer does not wait for
// the huge ones of others; idle work is taken when there is nothing else, by one thread at a time.
// Thread-safe.
class Executor {
 public:
  // `prepare`, if given, is called before each function on its thread, with the number of threads
  // that are busy, this one included.
  explicit Executor(int threads, std::function<void(int busy)> prepare = nullptr);

  ~Executor() { Stop(); }

  // Runs what is queued, including what that work schedules in turn, and joins the threads. Call it
  // on no thread of the executor.
  void Stop();

  // Runs `function` on one of the threads; it must not throw. False, and it is dropped, once the
  // executor has stopped: what comes in late from elsewhere finds nobody to wait for it.
  bool Schedule(std::function<void()> function, Work work = Work::kShort);

  // Functions that wait for a thread.
  int64_t waiting(Work work) const;

  int threads() const { return static_cast<int>(threads_.size()); }

 private:
  struct Item {
    std::function<void()> function;
    uint64_t age = 0;  // smaller is older
  };

  void Loop();
  // The queue whose turn it is; null: there is no work that may run now.
  std::deque<Item>* NextQueue() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::function<void(int)> prepare_;
  const int long_limit_;  // threads that may do long work at a time
  mutable Mutex mutex_;
  CondVar changed_;
  std::deque<Item> short_ ABSL_GUARDED_BY(mutex_);
  std::deque<Item> long_ ABSL_GUARDED_BY(mutex_);
  std::deque<Item> idle_ ABSL_GUARDED_BY(mutex_);
  uint64_t scheduled_ ABSL_GUARDED_BY(mutex_) = 0;
  int running_ ABSL_GUARDED_BY(mutex_) = 0;
  int running_long_ ABSL_GUARDED_BY(mutex_) = 0;
  int running_idle_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;  // when there is no more work
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;   // there is none, and none is taken
  std::vector<std::thread> threads_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_BASE_EXECUTOR_H_
