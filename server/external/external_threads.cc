#include "server/external/external_threads.h"

#include <algorithm>
#include <optional>
#include <thread>
#include <utility>

namespace nni_compression::server {
// One thread; it shares ownership of this with the caller that waits for it.
class ExternalThreads::Thread {
 public:
  static std::shared_ptr<Thread> Start(std::function<void(int)> prepare) {
    auto thread = std::make_shared<Thread>();
    std::thread([thread, prepare = std::move(prepare)] { thread->Loop(prepare); }).detach();
    return thread;
  }

  // End takes effect from here on.
  void Begin() {
    MutexLock lock(&mutex_);
    end_.reset();
  }

  // The function is dropped if it was ended before it began.
  void Give(std::function<void()> function, int busy) {
    MutexLock lock(&mutex_);
    if (end_) return;
    function_ = std::move(function);
    busy_ = busy;
    changed_.NotifyAll();
  }

  // Waits for the function's end, for whatever reason.
  ExternalEnd Wait() {
    MutexLock lock(&mutex_);
    while (!end_) changed_.Wait(&mutex_);
    return *end_;
  }

  // Only the first end counts. After any other than kDone the thread runs no further function.
  void End(ExternalEnd end) {
    MutexLock lock(&mutex_);
    if (end != ExternalEnd::kDone && !end_) leave_ = true;
    if (!end_) end_ = end;
    changed_.NotifyAll();
  }

  void Leave() {
    MutexLock lock(&mutex_);
    leave_ = true;
    changed_.NotifyAll();
  }

 private:
  void Loop(const std::function<void(int)>& prepare) {
    while (true) {
      std::function<void()> function;
      int busy = 0;
      {
        MutexLock lock(&mutex_);
        while (!function_ && !leave_) changed_.Wait(&mutex_);
        if (!function_) return;
        function = std::exchange(function_, nullptr);
        busy = busy_;
      }
      if (prepare) prepare(busy);
      function();
      function = nullptr;  // destroys what it owns before the caller is notified
      End(ExternalEnd::kDone);
    }
  }

  Mutex mutex_;
  CondVar changed_;
  std::function<void()> function_ ABSL_GUARDED_BY(mutex_);
  int busy_ ABSL_GUARDED_BY(mutex_) = 0;
  std::optional<ExternalEnd> end_ ABSL_GUARDED_BY(mutex_) = ExternalEnd::kDone;
  bool leave_ ABSL_GUARDED_BY(mutex_) = false;
};

ExternalThreads::ExternalThreads(TimerThread* timers, std::function<void(int)> prepare)
    : timers_(timers), prepare_(std::move(prepare)) {}

std::shared_ptr<ExternalThreads::Thread> ExternalThreads::Take() {
  if (idle_.empty()) return Thread::Start(prepare_);
  std::shared_ptr<Thread> thread = std::move(idle_.back());
  idle_.pop_back();
  return thread;
}

ExternalEnd ExternalThreads::Run(std::function<void()> function, absl::Duration timeout) {
  std::shared_ptr<Thread> thread;
  int busy = 0;
  {
    MutexLock lock(&mutex_);
    if (stopped_) return ExternalEnd::kStopped;
    thread = Take();
    busy_.push_back(thread);
    busy = static_cast<int>(busy_.size());
    thread->Begin();
  }
  // The timer first, so that a running function always has a timeout.
  const TimerThread::Id timer = timers_->RunAt(timers_->clock()->Now() + timeout,
                                               [thread] { thread->End(ExternalEnd::kLate); });
  thread->Give(std::move(function), busy);
  const ExternalEnd end = thread->Wait();
  const bool fresh = timers_->Cancel(timer);
  MutexLock lock(&mutex_);
  busy_.erase(std::find(busy_.begin(), busy_.end(), thread));
  if (end != ExternalEnd::kDone) return end;
  // A timer that is firing now would end the next function, so the thread is not reused.
  if (fresh && !stopped_) {
    idle_.push_back(std::move(thread));
  } else {
    thread->Leave();
  }
  return end;
}

void ExternalThreads::Stop() {
  MutexLock lock(&mutex_);
  stopped_ = true;
  for (const auto& thread : busy_) thread->End(ExternalEnd::kStopped);
  for (const auto& thread : idle_) thread->Leave();
  idle_.clear();
}

}  // namespace nni_compression::server
