#include "server/base/strand.h"

#include <utility>

namespace nni_compression::server {

std::shared_ptr<Strand> Strand::Create(Executor* executor) {
  return std::shared_ptr<Strand>(new Strand(executor));
}

bool Strand::Push(std::function<void()> function, Work work) {
  MutexLock lock(&mutex_);
  queue_.push_back({std::move(function), work});
  return queue_.size() == 1;
}

void Strand::Post(std::function<void()> function, Work work) {
  if (Push(std::move(function), work)) Schedule(work);
}

void Strand::RunOrPost(std::function<void()> function) {
  if (Push(std::move(function), Work::kShort)) RunOne();
}

void Strand::Schedule(Work work) {
  if (executor_->Schedule([self = shared_from_this()] { self->RunOne(); }, work)) return;
  std::deque<Item> dropped;  // destroyed without the lock: their destructors may post
  MutexLock lock(&mutex_);
  dropped.swap(queue_);
}

void Strand::RunOne() {
  std::function<void()> function;
  {
    MutexLock lock(&mutex_);
    function = std::move(queue_.front().function);
  }
  function();
  function = nullptr;
  Work next = Work::kShort;
  {
    MutexLock lock(&mutex_);
    queue_.pop_front();
    if (queue_.empty()) return;
    next = queue_.front().work;
  }
  Schedule(next);
}

}  // namespace nni_compression::server
