#include "server/executor.h"

#include <algorithm>
#include <utility>

namespace nni_compression::server {

Executor::Executor(int threads, std::function<void(int)> prepare)
    : prepare_(std::move(prepare)), long_limit_(std::max(1, threads - 1)) {
  for (int i = 0; i < std::max(1, threads); ++i) threads_.emplace_back([this] { Loop(); });
}

Executor::~Executor() {
  {
    MutexLock lock(&mutex_);
    stopped_ = true;
    changed_.NotifyAll();
  }
  for (std::thread& thread : threads_) thread.join();
}

void Executor::Schedule(std::function<void()> function, Work work) {
  MutexLock lock(&mutex_);
  (work == Work::kLong ? long_ : short_).push_back({std::move(function), scheduled_++});
  changed_.NotifyOne();
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
        if (stopped_ && running_ == 0) return;  // work that still runs may schedule more
        changed_.Wait(&mutex_);
      }
      function = std::move(queue->front().function);
      queue->pop_front();
      is_long = queue == &long_;
      running_long_ += is_long ? 1 : 0;
      busy = ++running_;
    }
    if (prepare_) prepare_(busy);
    function();
    function = nullptr;
    MutexLock lock(&mutex_);
    running_long_ -= is_long ? 1 : 0;
    if (--running_ == 0 && stopped_) changed_.NotifyAll();
    // A thread that passed over long work may take it now; this one looks for itself.
    if (is_long && !long_.empty()) changed_.NotifyOne();
  }
}

}  // namespace nni_compression::server
