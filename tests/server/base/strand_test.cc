#include "server/base/strand.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "server/base/executor.h"
#include "tests/testing/latch.h"

namespace nni_compression::server {
namespace {

using ::nni_compression::testing::Latch;

TEST(StrandTest, RunsFunctionsInTheOrderInWhichTheyWerePosted) {
  std::vector<int> ran;  // no lock: the strand is one
  {
    Executor executor(4);
    const auto strand = Strand::Create(&executor);
    for (int i = 0; i < 1000; ++i) strand->Post([&ran, i] { ran.push_back(i); });
  }
  ASSERT_EQ(ran.size(), 1000u);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(ran[i], i);
}

TEST(StrandTest, StrandsDoNotWaitForOneAnother) {
  Latch release, ran;  // outlive the threads that use them
  Executor executor(2);
  const auto blocked = Strand::Create(&executor);
  const auto other = Strand::Create(&executor);
  blocked->Post([&] { release.Wait(); });
  other->Post([&] { ran.Set(); });
  ran.Wait();
  release.Set();
}

TEST(StrandTest, ABusyStrandTakesTurnsWithTheOthers) {
  std::string order;
  Latch posted;
  {
    Executor executor(1);
    const auto busy = Strand::Create(&executor);
    const auto other = Strand::Create(&executor);
    busy->Post([&] { posted.Wait(); });
    for (int i = 0; i < 3; ++i) busy->Post([&] { order += 'b'; });
    for (int i = 0; i < 3; ++i) other->Post([&] { order += 'o'; });
    posted.Set();
  }
  EXPECT_EQ(order, "obobob");
}

TEST(StrandTest, WhatIsQuickRunsAtOnceWhenNothingIsUnderWay) {
  Executor executor(1);
  const auto strand = Strand::Create(&executor);
  std::thread::id ran_on;
  strand->RunOrPost([&] { ran_on = std::this_thread::get_id(); });
  EXPECT_EQ(ran_on, std::this_thread::get_id());
}

TEST(StrandTest, WhatIsQuickWaitsForWhatIsUnderWayAndIsWaitedFor) {
  std::string order;
  Latch running, release;
  {
    Executor executor(2);
    const auto strand = Strand::Create(&executor);
    strand->Post([&] {
      running.Set();
      release.Wait();
      order += 'a';
    });
    running.Wait();
    strand->RunOrPost([&] { order += 'b'; });
    strand->Post([&] { order += 'c'; });
    EXPECT_EQ(order, "");
    release.Set();
  }
  EXPECT_EQ(order, "abc");
}

TEST(StrandTest, AFunctionMayPostToItsOwnStrand) {
  std::vector<int> ran;
  Latch posted;
  {
    Executor executor(2);
    const auto strand = Strand::Create(&executor);
    strand->Post([&] {
      ran.push_back(1);
      strand->Post([&] { ran.push_back(3); });
      ran.push_back(2);
      posted.Set();
    });
    posted.Wait();
  }
  EXPECT_EQ(ran, (std::vector<int>{1, 2, 3}));
}

TEST(StrandTest, AFunctionIsDestroyedBeforeTheNextOneRuns) {
  const auto owned = std::make_shared<int>(0);
  bool alone = false;
  {
    Executor executor(1);
    const auto strand = Strand::Create(&executor);
    strand->Post([owned] {});
    strand->Post([&] { alone = owned.use_count() == 1; });
  }
  EXPECT_TRUE(alone);
}

}  // namespace
}  // namespace nni_compression::server
