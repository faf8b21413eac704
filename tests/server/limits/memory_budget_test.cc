#include "server/limits/memory_budget.h"

#include <gtest/gtest.h>

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "server/base/errors.h"

namespace nni_compression::server {
namespace {

class MemoryBudgetTest : public ::testing::Test {
 protected:
  // Tells the waiters that were served.
  void RunAll() {
    while (!queue_.empty()) {
      std::function<void()> function = std::move(queue_.front());
      queue_.pop_front();
      function();
    }
  }

  void Wait(int64_t bytes, const std::string& name, const MemoryQuota& quota = {}) {
    EXPECT_TRUE(Reserve(bytes, name, quota).ok());
  }

  // Waits under a name.
  absl::StatusOr<MemoryBudget::Ticket> Reserve(int64_t bytes, const std::string& name,
                                               const MemoryQuota& quota = {}) {
    return budget_->Reserve(bytes, quota, [this, name](Reservation memory) {
      granted_ += name;
      kept_.push_back(std::move(memory));
    });
  }

  std::deque<std::function<void()>> queue_;
  std::string granted_;
  std::vector<Reservation> kept_;
  std::shared_ptr<MemoryBudget> budget_ = MemoryBudget::Create(
      100, [this](std::function<void()> function) { queue_.push_back(std::move(function)); });
};

TEST_F(MemoryBudgetTest, AReservationGivesItsBytesBack) {
  {
    auto memory = budget_->TryReserve(60);
    ASSERT_TRUE(memory);
    EXPECT_EQ(budget_->reserved(), 60);
    memory->ShrinkTo(10);
    EXPECT_EQ(budget_->reserved(), 10);
    memory->ShrinkTo(50);  // never grows
    EXPECT_EQ(memory->bytes(), 10);
    Reservation moved = *std::move(memory);
    EXPECT_EQ(budget_->reserved(), 10);
  }
  EXPECT_EQ(budget_->reserved(), 0);
}

TEST_F(MemoryBudgetTest, AnAccountFollowsItsReservations) {
  const MemoryQuota quota = {std::make_shared<MemoryAccount>(), 50};
  auto memory = budget_->TryReserve(40);
  ASSERT_TRUE(memory->ChargeTo(quota).ok());
  EXPECT_EQ(quota.account->bytes(), 40);
  auto more = budget_->TryReserve(20);
  const absl::Status refused = more->ChargeTo(quota);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(RetryAfter(refused)) << "it fits once others have gone";
  EXPECT_EQ(quota.account->bytes(), 40);
  {
    Reservation part = memory->Split(15);
    EXPECT_EQ(quota.account->bytes(), 40);
    part.ShrinkTo(5);
    EXPECT_EQ(quota.account->bytes(), 30);
    part.Uncharge();
    EXPECT_EQ(quota.account->bytes(), 25);
  }
  EXPECT_EQ(quota.account->bytes(), 25);
  kept_.push_back(*std::move(memory));
  EXPECT_EQ(quota.account->bytes(), 25);
  kept_.clear();
  EXPECT_EQ(quota.account->bytes(), 0);
  EXPECT_FALSE(RetryAfter(budget_->TryReserve(51)->ChargeTo(quota))) << "no waiting helps";
}

TEST_F(MemoryBudgetTest, NothingIsReservedAboveTheLimit) {
  EXPECT_FALSE(budget_->TryReserve(101));
  auto all = budget_->TryReserve(100);
  EXPECT_TRUE(all);
  EXPECT_FALSE(budget_->TryReserve(1));
}

TEST_F(MemoryBudgetTest, WaitersAreServedInOrder) {
  auto first = budget_->TryReserve(80);
  Wait(50, "a");
  Wait(30, "b");
  RunAll();
  EXPECT_EQ(granted_, "");
  first.reset();
  RunAll();
  EXPECT_EQ(granted_, "ab");
  EXPECT_EQ(budget_->reserved(), 80);
  EXPECT_EQ(budget_->waiting(), 0);
}

TEST_F(MemoryBudgetTest, ACancelledWaiterIsNotCalledAndMakesWay) {
  auto first = budget_->TryReserve(80);
  const auto ticket = Reserve(70, "a");
  Wait(35, "b");
  EXPECT_EQ(budget_->waiting(), 2);
  first->ShrinkTo(60);
  EXPECT_TRUE(budget_->Cancel(*ticket));
  EXPECT_FALSE(budget_->Cancel(*ticket));
  RunAll();
  EXPECT_EQ(granted_, "b");
}

TEST_F(MemoryBudgetTest, BytesOfAWaiterThatWasServedButNotToldGoBack) {
  Wait(50, "a");
  EXPECT_EQ(budget_->reserved(), 50);
  queue_.clear();
  EXPECT_EQ(budget_->reserved(), 0);
}

TEST_F(MemoryBudgetTest, ARequestAboveTheLimitDoesNotWait) {
  const auto refused = Reserve(101, "a");
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(RetryAfter(refused.status()));
  RunAll();
  EXPECT_EQ(granted_, "");
  EXPECT_EQ(budget_->waiting(), 0);
}

TEST_F(MemoryBudgetTest, SmallRequestsPassALargeOneThatThereIsNoRoomFor) {
  auto first = budget_->TryReserve(60);
  Wait(70, "a");
  auto small = budget_->TryReserve(20);
  EXPECT_TRUE(small);
  Wait(10, "b");
  RunAll();
  EXPECT_EQ(granted_, "b");
  EXPECT_FALSE(budget_->TryReserve(1)) << "30 are all that the large one leaves";
  first.reset();
  RunAll();
  EXPECT_EQ(granted_, "ba") << "it waits for none of those that passed it";
}

TEST_F(MemoryBudgetTest, ALargeRequestIsNotStarvedBySmallOnes) {
  std::deque<std::optional<Reservation>> small;
  for (int i = 0; i < 10; ++i) small.push_back(budget_->TryReserve(10));
  Wait(100, "a");
  // Others go on trying while those come to their ends.
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(granted_, "");
    small.pop_front();
    EXPECT_FALSE(budget_->TryReserve(10));
    RunAll();
  }
  EXPECT_EQ(granted_, "a");
}

TEST_F(MemoryBudgetTest, ATenantIsChargedBeforeItWaits) {
  const MemoryQuota quota = {std::make_shared<MemoryAccount>(), 60};
  auto first = budget_->TryReserve(80);
  const auto ticket = Reserve(50, "a", quota);
  EXPECT_EQ(quota.account->bytes(), 50);
  const auto refused = Reserve(50, "b", quota);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(RetryAfter(refused.status()));
  EXPECT_EQ(budget_->waiting(), 1) << "it is not in anybody's way";
  EXPECT_TRUE(budget_->Cancel(*ticket));
  EXPECT_EQ(quota.account->bytes(), 0);
  Wait(50, "c", quota);
  first.reset();
  RunAll();
  EXPECT_EQ(quota.account->bytes(), 50);
  kept_.clear();
  EXPECT_EQ(quota.account->bytes(), 0);
}

TEST_F(MemoryBudgetTest, WhatIsKeptIsNotWaitedFor) {
  auto kept = budget_->TryReserve(20, MemoryUse::kKept);
  ASSERT_TRUE(kept);
  const auto refused = Reserve(81, "a");
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(RetryAfter(refused.status())) << "a session may end";
  EXPECT_EQ(budget_->waiting(), 0);
  EXPECT_TRUE(budget_->TryReserve(80)) << "nobody is in the way";
  kept.reset();
  Wait(81, "a");
  RunAll();
  EXPECT_EQ(granted_, "a");
}

TEST_F(MemoryBudgetTest, WhatIsKeptTakesNothingThatAWaitingOneNeeds) {
  auto first = budget_->TryReserve(60);
  Wait(70, "a");
  EXPECT_FALSE(budget_->TryReserve(31, MemoryUse::kKept));
  auto kept = budget_->TryReserve(30, MemoryUse::kKept);
  EXPECT_TRUE(kept);
  first.reset();
  RunAll();
  EXPECT_EQ(granted_, "a");
  EXPECT_EQ(budget_->reserved(), 100);
}

TEST_F(MemoryBudgetTest, BookkeepingHasRoomBesideAllPayloads) {
  auto payload = budget_->TryReserve(100);
  std::optional<Reservation> bookkeeping = budget_->TryReserve(1 << 20, MemoryUse::kBookkeeping);
  EXPECT_TRUE(bookkeeping);
  EXPECT_EQ(budget_->reserved(), 100 + (1 << 20));
  EXPECT_FALSE(budget_->TryReserve(1, MemoryUse::kBookkeeping));
  payload->ShrinkTo(90);
  EXPECT_TRUE(budget_->TryReserve(10, MemoryUse::kBookkeeping)) << "what payloads leave";
  EXPECT_FALSE(budget_->TryReserve(11, MemoryUse::kBookkeeping));
  EXPECT_TRUE(budget_->TryReserve(10));
}

TEST_F(MemoryBudgetTest, WhatWaitsIsServedThoughItsCallsHoldBookkeeping) {
  auto all = budget_->TryReserve(100);
  Wait(100, "a");
  // Their calls' own, of which none would come back before they are served.
  auto bookkeeping = budget_->TryReserve(1 << 20, MemoryUse::kBookkeeping);
  ASSERT_TRUE(bookkeeping);
  all->ShrinkTo(50);
  EXPECT_FALSE(budget_->TryReserve(1, MemoryUse::kBookkeeping)) << "the waiting one needs all";
  all.reset();
  RunAll();
  EXPECT_EQ(granted_, "a");
}

TEST(MemoryBudgetThreadsTest, ManyThreadsNeverExceedTheLimit) {
  const auto budget = MemoryBudget::Create(10, [](std::function<void()> run) { run(); });
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&budget] {
      for (int i = 0; i < 1000; ++i) {
        const auto memory = budget->TryReserve(1 + i % 7);
        EXPECT_LE(budget->reserved(), 10);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(budget->reserved(), 0);
}

}  // namespace
}  // namespace nni_compression::server
