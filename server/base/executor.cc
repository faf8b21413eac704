#include "server/base/executor.h"

#include <algorithm>
#include <utility>

namespace nni_compression::server {

Executor::Executor(int threads, std::function<void(int)> prepare)
    : prepare_(std::move(prepare)), long_limit_(std::max(1, threads - 1)) {
  for (int i = 0; i < std::max(1, threads); ++i) threads_.emplace_back([this] { Loop(); });
}

void Executor::Stop() {
  {
    MutexLock lock(&mutex_);
    stopped_ = true;
    changed_.NotifyAll();
  }
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

bool Executor::Schedule(std::function<void()> function, Work work) {
  MutexLock lock(&mutex_);
  if (closed_) return false;
  auto& queue = work == Work::kShort ? short_ : long_;
  queue.push_back({std::move(function), scheduled_++});
  changed_.NotifyOne();
  return true;
}

int64_t Executor::waiting(Work work) const {
  MutexLock lock(&mutex_);
  const auto& queue = work == Work::kShort ? short_ : long_;
  return static_cast<int64_t>(queue.size());
}

std::deque<Executor::Item>* Executor::NextQueue() {
  const bool may_be_long = !long_.empty() && running_long_ < long_limit_;
  if (may_be_long && (short_.empty() || long_.front().age < short_.front().age)) return &long_;
  return short_.empty() ? nullptr : &short_;
}

void Executor::Loop() {
  while (true) {
    std::function<void()> function;
    int busy = 0;
    bool is_long = false;
    {
      MutexLock lock(&mutex_);
      std::deque<Item>* queue = nullptr;
      while ((queue = NextQueue()) == nullptr) {
        if (stopped_ && running_ == 0) {  // running work may schedule more
          closed_ = true;
          return;
        }
        changed_.Wait(&mutex_);
      }
      function = std::move(queue->front().function);
      queue->pop_front();
      is_long = queue == &long_;
      if (is_long) ++running_long_;
      busy = ++running_;
    }
    if (prepare_) prepare_(busy);
    function();
    function = nullptr;
    MutexLock lock(&mutex_);
    if (is_long) --running_long_;
    if (--running_ == 0 && stopped_) changed_.NotifyAll();
    // Work that could not run may run now. This thread checks the queues itself.
    if (!long_.empty()) changed_.NotifyOne();
  }
}

}  // namespace nni_compression::server
