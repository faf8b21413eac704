#include "server/foreign_thread.h"

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

class ForeignThreadTest : public ::testing::Test {
 protected:
  ~ForeignThreadTest() override { hang_->release.Set(); }

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
  ForeignThreads threads_{&timers_, nullptr};
  const std::shared_ptr<Hang> hang_ = std::make_shared<Hang>();
};

TEST_F(ForeignThreadTest, RunsOnAThreadOfItsOwnAndUsesItAgain) {
  std::thread::id first, second;
  const auto note = [](std::thread::id* id) { return [id] { *id = std::this_thread::get_id(); }; };
  EXPECT_EQ(threads_.Run(note(&first), kTimeout), ForeignEnd::kDone);
  EXPECT_EQ(threads_.Run(note(&second), kTimeout), ForeignEnd::kDone);
  EXPECT_NE(first, std::this_thread::get_id());
  EXPECT_EQ(first, second);
}

TEST_F(ForeignThreadTest, WhatTheFunctionOwnsIsGoneBeforeTheCallerHears) {
  auto owned = std::make_shared<int>(1);
  const std::weak_ptr<int> watched = owned;
  EXPECT_EQ(threads_.Run([owned = std::move(owned)] {}, kTimeout), ForeignEnd::kDone);
  EXPECT_TRUE(watched.expired());
}

TEST_F(ForeignThreadTest, NobodyWaitsForALateFunctionAndOthersGoOn) {
  ForeignEnd end = ForeignEnd::kDone;
  std::thread caller([&] { end = threads_.Run(Hanging(), kTimeout); });
  hang_->started.Wait();
  EXPECT_EQ(threads_.Run([] {}, kTimeout), ForeignEnd::kDone);
  clock_.Advance(kTimeout);
  caller.join();
  EXPECT_EQ(end, ForeignEnd::kLate);
  EXPECT_EQ(threads_.Run([] {}, kTimeout), ForeignEnd::kDone);
  hang_->release.Set();
  hang_->over.Wait();
}

TEST_F(ForeignThreadTest, StopEndsWaitsAndThoseToCome) {
  ForeignEnd end = ForeignEnd::kDone;
  std::thread caller([&] { end = threads_.Run(Hanging(), kTimeout); });
  hang_->started.Wait();
  threads_.Stop();
  caller.join();
  EXPECT_EQ(end, ForeignEnd::kStopped);
  EXPECT_EQ(threads_.Run([] { FAIL(); }, kTimeout), ForeignEnd::kStopped);
}

TEST_F(ForeignThreadTest, TellsEachThreadHowManyAreBusy) {
  std::atomic<int> most{0};
  ForeignThreads threads(&timers_, [&](int busy) { most = std::max<int>(most, busy); });
  std::thread caller([&] { threads.Run(Hanging(), kTimeout); });
  hang_->started.Wait();
  EXPECT_EQ(most, 1);
  EXPECT_EQ(threads.Run([] {}, kTimeout), ForeignEnd::kDone);
  EXPECT_EQ(most, 2);
  hang_->release.Set();
  caller.join();
}

}  // namespace
}  // namespace nni_compression::server
