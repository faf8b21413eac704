#include "server/memory_budget.h"

#include <gtest/gtest.h>

#include <deque>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "server/status.h"

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

  MemoryBudget::Granted Keep(const std::string& name) {
    return [this, name](Reservation memory) {
      granted_ += name;
      kept_.push_back(std::move(memory));
    };
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
  const MemoryShare share = {std::make_shared<MemoryAccount>(), 50};
  auto memory = budget_->TryReserve(40);
  ASSERT_TRUE(memory->ChargeTo(share).ok());
  EXPECT_EQ(share.account->bytes(), 40);
  auto more = budget_->TryReserve(20);
  const absl::Status refused = more->ChargeTo(share);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(RetryAfter(refused)) << "it fits once others have gone";
  EXPECT_EQ(share.account->bytes(), 40);
  {
    Reservation part = memory->Split(15);
    EXPECT_EQ(share.account->bytes(), 40);
    part.ShrinkTo(5);
    EXPECT_EQ(share.account->bytes(), 30);
    part.Uncharge();
    EXPECT_EQ(share.account->bytes(), 25);
  }
  EXPECT_EQ(share.account->bytes(), 25);
  kept_.push_back(*std::move(memory));
  EXPECT_EQ(share.account->bytes(), 25);
  kept_.clear();
  EXPECT_EQ(share.account->bytes(), 0);
  EXPECT_FALSE(RetryAfter(budget_->TryReserve(51)->ChargeTo(share))) << "no waiting helps";
}

TEST_F(MemoryBudgetTest, NothingIsReservedAboveTheLimit) {
  EXPECT_FALSE(budget_->TryReserve(101));
  auto all = budget_->TryReserve(100);
  EXPECT_TRUE(all);
  EXPECT_FALSE(budget_->TryReserve(1));
}

TEST_F(MemoryBudgetTest, WaitersAreServedInOrderAndNotOvertaken) {
  auto first = budget_->TryReserve(80);
  budget_->Reserve(50, Keep("a"));
  budget_->Reserve(10, Keep("b"));
  EXPECT_FALSE(budget_->TryReserve(1)) << "others wait";
  RunAll();
  EXPECT_EQ(granted_, "");
  first.reset();
  RunAll();
  EXPECT_EQ(granted_, "ab");
  EXPECT_EQ(budget_->reserved(), 60);
  EXPECT_EQ(budget_->waiting(), 0);
}

TEST_F(MemoryBudgetTest, ACancelledWaiterIsNotCalledAndMakesWay) {
  auto first = budget_->TryReserve(80);
  const auto ticket = budget_->Reserve(50, Keep("a"));
  budget_->Reserve(10, Keep("b"));
  EXPECT_TRUE(budget_->Cancel(ticket));
  EXPECT_FALSE(budget_->Cancel(ticket));
  RunAll();
  EXPECT_EQ(granted_, "b");
}

TEST_F(MemoryBudgetTest, BytesOfAWaiterThatWasServedButNotToldGoBack) {
  budget_->Reserve(50, Keep("a"));
  EXPECT_EQ(budget_->reserved(), 50);
  queue_.clear();
  EXPECT_EQ(budget_->reserved(), 0);
}

TEST_F(MemoryBudgetTest, ARequestAboveTheLimitIsNeverServed) {
  budget_->Reserve(101, Keep("a"));
  RunAll();
  EXPECT_EQ(granted_, "");
  EXPECT_EQ(budget_->waiting(), 0);
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
