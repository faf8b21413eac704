#include "server/base/timer_thread.h"

namespace nni_compression::server {

TimerThread::TimerThread(Clock* clock) : clock_(clock), thread_([this] { Loop(); }) {
  clock_->SetListener([this] {
    MutexLock lock(&mutex_);
    changed_.NotifyAll();
  });
}

void TimerThread::Stop() {
  if (!thread_.joinable()) return;
  clock_->SetListener(nullptr);
  {
    MutexLock lock(&mutex_);
    stopped_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
  std::map<Id, std::function<void()>> dropped;  // destroyed without the lock
  MutexLock lock(&mutex_);
  dropped.swap(functions_);
}

TimerThread::Id TimerThread::RunAt(absl::Time time, std::function<void()> function) {
  MutexLock lock(&mutex_);
  const Id id(time, next_id_++);
  if (stopped_) return id;
  const auto it = functions_.emplace(id, std::move(function)).first;
  if (it == functions_.begin()) changed_.NotifyAll();
  return id;
}

void TimerThread::Run(std::function<void()> function) {
  RunAt(absl::InfinitePast(), std::move(function));
}

bool TimerThread::Cancel(const Id& id) {
  std::function<void()> dropped;  // destroyed without the lock: its destructor may call back
  MutexLock lock(&mutex_);
  const auto it = functions_.find(id);
  if (it == functions_.end()) return false;
  dropped = std::move(it->second);
  functions_.erase(it);
  return true;
}

void TimerThread::Loop() {
  while (true) {
    std::function<void()> due;
    {
      MutexLock lock(&mutex_);
      while (!stopped_ && (functions_.empty() || functions_.begin()->first.first > clock_->Now())) {
        changed_.WaitFor(&mutex_, functions_.empty()
                                      ? absl::InfiniteDuration()
                                      : clock_->SleepUntil(functions_.begin()->first.first));
      }
      if (stopped_) return;
      due = std::move(functions_.begin()->second);
      functions_.erase(functions_.begin());
    }
    due();
  }
}

}  // namespace nni_compression::server
