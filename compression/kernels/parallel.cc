#include "compression/kernels/parallel.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace nni_compression::compression {
namespace {

// Kernels are bound by memory, and each thread has scratch of its own.
constexpr int64_t kMaxThreads = 16;

}  // namespace

void ParallelFor(int64_t n, int64_t grain, absl::FunctionRef<void(int64_t, int64_t)> f) {
  if (n <= 0) return;
  const int64_t blocks = (n + grain - 1) / grain;
  const int64_t threads =
      blocks == 1 ? 1 : std::min({blocks, int64_t{at::get_num_threads()}, kMaxThreads});
  if (threads <= 1) {
    f(0, n);
    return;
  }
  std::mutex mutex;
  std::exception_ptr error;
  const auto run = [&](int64_t t) {
    const int64_t begin = blocks * t / threads * grain;
    const int64_t end = std::min(n, blocks * (t + 1) / threads * grain);
    try {
      f(begin, end);
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::current_exception();
    }
  };
  std::vector<std::thread> workers;
  workers.reserve(threads - 1);
  int64_t t = 1;
  try {
    for (; t < threads; ++t) workers.emplace_back(run, t);
  } catch (const std::system_error&) {
    // No further thread can be started: the caller does the rest.
  }
  run(0);
  for (; t < threads; ++t) run(t);
  for (std::thread& worker : workers) worker.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace nni_compression::compression
