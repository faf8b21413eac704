// Functions that run in order, on shared threads.
#ifndef NNI_COMPRESSION_SERVER_BASE_STRAND_H_
#define NNI_COMPRESSION_SERVER_BASE_STRAND_H_

#include <deque>
#include <functional>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "server/base/executor.h"
#include "server/base/mutex.h"

namespace nni_compression::server {

// Runs functions one at a time in the order in which they were posted; what one writes is visible
// to the next. After each function the strand goes to the back of the executor's queue, so that a
// busy session takes turns with the others. Thread-safe. Lives as long as it has work.
class Strand : public std::enable_shared_from_this<Strand> {
 public:
  // `executor` outlives the strand's work.
  static std::shared_ptr<Strand> Create(Executor* executor);

  // `function` must not throw. It is dropped when the executor has stopped.
  void Post(std::function<void()> function, Work work = Work::kShort);

  // The same for functions that take microseconds: an idle strand runs them at once on the calling
  // thread, which saves waking another one.
  void RunOrPost(std::function<void()> function);

 private:
  explicit Strand(Executor* executor) : executor_(executor) {}

  struct Item {
    std::function<void()> function;
    Work work = Work::kShort;
  };

  // Returns whether the strand was idle.
  bool Push(std::function<void()> function, Work work);
  void Schedule(Work work);
  void RunOne();

  Executor* const executor_;
  Mutex mutex_;
  // The first one is running or scheduled.
  std::deque<Item> queue_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_BASE_STRAND_H_
