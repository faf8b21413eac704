// The compute threads.
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

// Classes of work. kLong computes on megabytes.
enum class Work { kShort, kLong };

// A fixed pool of threads that runs the oldest work first. Long work, which is parallel by itself,
// never occupies the last of several threads, so that a small layer does not wait for the huge
// layers of others. Thread-safe.
class Executor {
 public:
  // `prepare`, if given, is called on a thread before each of its functions, with the number of
  // busy threads, this one included.
  explicit Executor(int threads, std::function<void(int busy)> prepare = nullptr);

  ~Executor() { Stop(); }

  // Runs what is queued, including what that work schedules in turn, and joins the threads. Must
  // not be called on a thread of the executor.
  void Stop();

  // Runs `function` on one of the threads; it must not throw. Returns false, and drops it, once the
  // executor has stopped.
  bool Schedule(std::function<void()> function, Work work = Work::kShort);

  // Queued functions.
  int64_t waiting(Work work) const;

  int threads() const { return static_cast<int>(threads_.size()); }

 private:
  struct Item {
    std::function<void()> function;
    uint64_t age = 0;  // smaller is older
  };

  void Loop();
  // The queue to take the next function from; null when no work may run now.
  std::deque<Item>* NextQueue() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::function<void(int)> prepare_;
  const int long_limit_;  // threads that may run long work at a time
  mutable Mutex mutex_;
  CondVar changed_;
  std::deque<Item> short_ ABSL_GUARDED_BY(mutex_);
  std::deque<Item> long_ ABSL_GUARDED_BY(mutex_);
  uint64_t scheduled_ ABSL_GUARDED_BY(mutex_) = 0;
  int running_ ABSL_GUARDED_BY(mutex_) = 0;
  int running_long_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;  // threads end once no work is left
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;   // no work is left, and none is accepted
  std::vector<std::thread> threads_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_BASE_EXECUTOR_H_
