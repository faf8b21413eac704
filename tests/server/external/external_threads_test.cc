#include "server/external/external_threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>

#include "tests/testing/fake_clock.h"
#include "tests/testing/latch.h"

namespace nni_compression::server {
namespace {

using testing::FakeClock;
using testing::Latch;

constexpr absl::Duration kTimeout = absl::Seconds(5);

struct Hang {
  Latch started;
  Latch release;
  Latch over;
};

class ExternalThreadsTest : public ::testing::Test {
 protected:
  ~ExternalThreadsTest() override { hang_->release.Set(); }

  // What never comes back before `release`, and owns what it touches.
  std::function<void()> Hanging() {
    return [hang = hang_] {
      hang->started.Set();
      hang->release.Wait();
      hang->over.Set();
    };
  }

  FakeClock clock_;
  TimerThread timers_{&clock_};
  ExternalThreads threads_{&timers_, nullptr};
  const std::shared_ptr<Hang> hang_ = std::make_shared<Hang>();
};

TEST_F(ExternalThreadsTest, RunsOnAThreadOfItsOwnAndUsesItAgain) {
  std::thread::id first, second;
  const auto note = [](std::thread::id* id) { return [id] { *id = std::this_thread::get_id(); }; };
  EXPECT_EQ(threads_.Run(note(&first), kTimeout), ExternalEnd::kDone);
  EXPECT_EQ(threads_.Run(note(&second), kTimeout), ExternalEnd::kDone);
  EXPECT_NE(first, std::this_thread::get_id());
  EXPECT_EQ(first, second);
}

TEST_F(ExternalThreadsTest, WhatTheFunctionOwnsIsGoneBeforeTheCallerHears) {
  auto owned = std::make_shared<int>(1);
  const std::weak_ptr<int> watched = owned;
  EXPECT_EQ(threads_.Run([owned = std::move(owned)] {}, kTimeout), ExternalEnd::kDone);
  EXPECT_TRUE(watched.expired());
}

TEST_F(ExternalThreadsTest, NobodyWaitsForALateFunctionAndOthersGoOn) {
  ExternalEnd end = ExternalEnd::kDone;
  std::thread caller([&] { end = threads_.Run(Hanging(), kTimeout); });
  hang_->started.Wait();
  EXPECT_EQ(threads_.Run([] {}, kTimeout), ExternalEnd::kDone);
  clock_.Advance(kTimeout);
  caller.join();
  EXPECT_EQ(end, ExternalEnd::kLate);
  EXPECT_EQ(threads_.Run([] {}, kTimeout), ExternalEnd::kDone);
  hang_->release.Set();
  hang_->over.Wait();
}

TEST_F(ExternalThreadsTest, StopEndsWaitsAndThoseToCome) {
  ExternalEnd end = ExternalEnd::kDone;
  std::thread caller([&] { end = threads_.Run(Hanging(), kTimeout); });
  hang_->started.Wait();
  threads_.Stop();
  caller.join();
  EXPECT_EQ(end, ExternalEnd::kStopped);
  EXPECT_EQ(threads_.Run([] { FAIL(); }, kTimeout), ExternalEnd::kStopped);
}

TEST_F(ExternalThreadsTest, TellsEachThreadHowManyAreBusy) {
  std::atomic<int> most{0};
  ExternalThreads threads(&timers_, [&](int busy) { most = std::max<int>(most, busy); });
  std::thread caller([&] { threads.Run(Hanging(), kTimeout); });
  hang_->started.Wait();
  EXPECT_EQ(most, 1);
  EXPECT_EQ(threads.Run([] {}, kTimeout), ExternalEnd::kDone);
  EXPECT_EQ(most, 2);
  hang_->release.Set();
  caller.join();
}

}  // namespace
}  // namespace nni_compression::server
