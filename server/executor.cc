#include "server/executor.h"

#include <algorithm>
#include <utility>

namespace nni_compression::server {

Executor::Executor(int threads, std::function<void(int)> prepare) : prepare_(std::move(prepare)) {
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

void Executor::Schedule(std::function<void()> function) {
  MutexLock lock(&mutex_);
  queue_.push_back(std::move(function));
  changed_.NotifyOne();
}

void Executor::Loop() {
  while (true) {
    std::function<void()> function;
    int busy = 0;
    {
      MutexLock lock(&mutex_);
      // Work that still runs may schedule more.
      while (queue_.empty() && !(stopped_ && running_ == 0)) changed_.Wait(&mutex_);
      if (queue_.empty()) return;
      function = std::move(queue_.front());
      queue_.pop_front();
      busy = ++running_;
    }
    if (prepare_) prepare_(busy);
    function();
    function = nullptr;
    MutexLock lock(&mutex_);
    if (--running_ == 0 && stopped_) changed_.NotifyAll();
  }
}

}  // namespace nni_compression::server
