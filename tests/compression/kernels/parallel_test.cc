#include "compression/kernels/parallel.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

namespace nni_compression::compression {
namespace {

class ParallelForTest : public testing::Test {
 protected:
  ~ParallelForTest() override { at::set_num_threads(before_); }
  const int before_ = at::get_num_threads();
};

TEST_F(ParallelForTest, VisitsEveryElementOnceAndBeginsAtMultiplesOfTheGrain) {
  for (int threads : {1, 2, 3, 8}) {
    at::set_num_threads(threads);
    for (int64_t n : {1, 63, 64, 65, 640, 1000}) {
      std::vector<int> visits(n);
      std::mutex mutex;
      ParallelFor(n, 64, [&](int64_t begin, int64_t end) {
        EXPECT_EQ(begin % 64, 0);
        std::lock_guard<std::mutex> lock(mutex);
        for (int64_t i = begin; i < end; ++i) ++visits[i];
      });
      EXPECT_EQ(visits, std::vector<int>(n, 1)) << threads << " threads";
    }
  }
}

TEST_F(ParallelForTest, UsesAsManyThreadsAsLibTorchIsSetTo) {
  for (size_t threads : {1, 2, 8}) {
    at::set_num_threads(static_cast<int>(threads));
    std::set<std::thread::id> ids;
    std::mutex mutex;
    ParallelFor(6400, 64, [&](int64_t, int64_t) {
      std::lock_guard<std::mutex> lock(mutex);
      ids.insert(std::this_thread::get_id());
    });
    EXPECT_LE(ids.size(), threads);
    EXPECT_EQ(ids.count(std::this_thread::get_id()), 1u);
    EXPECT_EQ(ids.size() > 1, threads > 1);
  }
}

TEST_F(ParallelForTest, DoesSmallWorkOnTheCallingThread) {
  at::set_num_threads(8);
  ParallelFor(64, 64, [caller = std::this_thread::get_id()](int64_t, int64_t) {
    EXPECT_EQ(std::this_thread::get_id(), caller);
  });
}

TEST_F(ParallelForTest, RethrowsWhatAThreadThrows) {
  at::set_num_threads(4);
  EXPECT_THROW(ParallelFor(1000, 64,
                           [](int64_t, int64_t end) {
                             if (end == 1000) throw std::runtime_error("no");
                           }),
               std::runtime_error);
}

TEST_F(ParallelForTest, DoesNothingForNothing) {
  ParallelFor(0, 64, [](int64_t, int64_t) { FAIL(); });
}

}  // namespace
}  // namespace nni_compression::compression
