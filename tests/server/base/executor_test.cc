#include "server/base/executor.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "server/base/mutex.h"
#include "server/base/strand.h"
#include "tests/testing/latch.h"

namespace nni_compression::server {
namespace {

using ::nni_compression::testing::Latch;

TEST(ExecutorTest, TellsHowManyThreadsAreBusy) {
  Mutex mutex;
  std::vector<int> busy;
  Latch first, second;
  {
    Executor executor(2, [&](int now) {
      MutexLock lock(&mutex);
      busy.push_back(now);
    });
    executor.Schedule([&] {
      first.Set();
      second.Wait();
    });
    first.Wait();
    executor.Schedule([&] { second.Set(); });
  }
  EXPECT_EQ(busy, (std::vector<int>{1, 2}));
}

TEST(ExecutorTest, LongWorkLeavesAThreadForShortWork) {
  Latch release, ran;  // outlive the threads that use them
  Executor executor(2);
  for (int i = 0; i < 3; ++i) executor.Schedule([&] { release.Wait(); }, Work::kLong);
  executor.Schedule([&] { ran.Set(); });
  ran.Wait();
  release.Set();
}

TEST(ExecutorTest, LongWorkUsesAllOtherThreads) {
  Latch first, second;
  Executor executor(3);
  executor.Schedule(
      [&] {
        first.Set();
        second.Wait();
      },
      Work::kLong);
  executor.Schedule(
      [&] {
        first.Wait();
        second.Set();
      },
      Work::kLong);
}

TEST(ExecutorTest, WorkIsTakenByAge) {
  std::string order;
  Latch posted;
  {
    Executor executor(1);
    executor.Schedule([&] { posted.Wait(); });
    executor.Schedule([&] { order += 'a'; }, Work::kLong);
    executor.Schedule([&] { order += 'b'; });
    executor.Schedule([&] { order += 'c'; }, Work::kLong);
    executor.Schedule([&] { order += 'd'; });
    posted.Set();
  }
  EXPECT_EQ(order, "abcd");
}

TEST(ExecutorTest, EverythingRunsBeforeItIsDestroyed) {
  Mutex mutex;
  int ran = 0;
  {
    Executor executor(4);
    for (int i = 0; i < 1000; ++i) {
      executor.Schedule(
          [&] {
            MutexLock lock(&mutex);
            ++ran;
          },
          i % 2 == 0 ? Work::kLong : Work::kShort);
    }
  }
  EXPECT_EQ(ran, 1000);
}

TEST(ExecutorTest, WhatComesAfterTheEndIsDropped) {
  Executor executor(2);
  auto owned = std::make_shared<int>(0);
  EXPECT_TRUE(executor.Schedule([owned] { ++*owned; }));
  executor.Stop();
  EXPECT_EQ(*owned, 1);
  EXPECT_FALSE(executor.Schedule([owned] { ++*owned; }));
  EXPECT_EQ(owned.use_count(), 1);
  // A strand, which owns what it runs, lets go of it.
  const auto strand = Strand::Create(&executor);
  strand->Post([owned, strand] { ++*owned; });
  EXPECT_EQ(owned.use_count(), 1);
  EXPECT_EQ(*owned, 1);
}

}  // namespace
}  // namespace nni_compression::server
