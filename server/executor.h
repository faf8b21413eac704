// The threads that compute.
#ifndef NNI_COMPRESSION_SERVER_EXECUTOR_H_
#define NNI_COMPRESSION_SERVER_EXECUTOR_H_

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "server/mutex.h"

namespace nni_compression::server {

// A fixed number of threads over one queue. Only strands put work in, and each at most one function
// at a time, so the queue is bounded by the number of strands. Thread-safe.
class Executor {
 public:
  // `prepare`, if given, is called before each function on its thread, with the number of threads
  // that are busy, this one included.
  explicit Executor(int threads, std::function<void(int busy)> prepare = nullptr);

  // Runs what is queued, including what that work schedules in turn, and joins the threads. Call it
  // on no thread of the executor.
  ~Executor();

  // Runs `function` on one of the threads; it must not throw.
  void Schedule(std::function<void()> function);

  int threads() const { return static_cast<int>(threads_.size()); }

 private:
  void Loop();

  const std::function<void(int)> prepare_;
  Mutex mutex_;
  CondVar changed_;
  std::deque<std::function<void()>> queue_ ABSL_GUARDED_BY(mutex_);
  int running_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_EXECUTOR_H_
