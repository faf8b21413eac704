#include "server/base/timer_thread.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "tests/testing/fake_clock.h"
#include "tests/testing/latch.h"

namespace nni_compression::server {
namespace {

using ::nni_compression::testing::FakeClock;
using ::nni_compression::testing::Latch;

class TimerThreadTest : public ::testing::Test {
 protected:
  // Returns when everything that is due has run.
  void Flush() {
    Latch ran;
    timers_.RunAt(clock_.Now(), [&] { ran.Set(); });
    ran.Wait();
  }

  FakeClock clock_;
  std::string order_;  // written by the timer thread, read after Flush
  TimerThread timers_{&clock_};
};

TEST_F(TimerThreadTest, RunsFunctionsByTimeAndThenByOrder) {
  const absl::Time now = clock_.Now();
  timers_.RunAt(now + absl::Seconds(2), [&] { order_ += 'c'; });
  timers_.RunAt(now + absl::Seconds(1), [&] { order_ += 'a'; });
  timers_.RunAt(now + absl::Seconds(1), [&] { order_ += 'b'; });
  Flush();
  EXPECT_EQ(order_, "");
  clock_.Advance(absl::Seconds(1));
  Flush();
  EXPECT_EQ(order_, "ab");
  clock_.Advance(absl::Seconds(1));
  Flush();
  EXPECT_EQ(order_, "abc");
}

TEST_F(TimerThreadTest, ACancelledFunctionDoesNotRun) {
  const auto id = timers_.RunAt(clock_.Now() + absl::Seconds(1), [&] { order_ += 'x'; });
  EXPECT_TRUE(timers_.Cancel(id));
  EXPECT_FALSE(timers_.Cancel(id));
  clock_.Advance(absl::Seconds(1));
  Flush();
  EXPECT_EQ(order_, "");
}

TEST_F(TimerThreadTest, StopDropsWhatWaitsAndWhatComes) {
  const auto waiting = std::make_shared<int>(0);
  timers_.RunAt(clock_.Now() + absl::Seconds(1), [waiting] {});
  timers_.Stop();
  EXPECT_EQ(waiting.use_count(), 1);
  timers_.Run([waiting] {});
  EXPECT_EQ(waiting.use_count(), 1);
}

TEST(SystemClockTest, TimersRunInRealTime) {
  Latch ran;
  TimerThread timers(Clock::System());
  timers.RunAt(Clock::System()->Now() + absl::Milliseconds(1), [&] { ran.Set(); });
  ran.Wait();
}

}  // namespace
}  // namespace nni_compression::server
