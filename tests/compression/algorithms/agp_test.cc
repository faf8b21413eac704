#include <cmath>
#include <numeric>

#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

json Rule(double initial, double final, int start, int end, int frequency) {
  return {{"initial_sparsity", initial},
          {"final_sparsity", final},
          {"start_epoch", start},
          {"end_epoch", end},
          {"frequency", frequency}};
}

at::Tensor OneTo(int n) {
  std::vector<double> values(n);
  std::iota(values.begin(), values.end(), 1.0);
  return Values(values);
}

// Zeros of the mask at the epochs 0, 1, ..., last.
std::vector<int64_t> ZerosByEpoch(const json& rule, const at::Tensor& weight, int last) {
  auto session = BindOne("agp", rule, {weight.numel()});
  std::vector<int64_t> zeros;
  for (int epoch = 0; epoch <= last; ++epoch) {
    EXPECT_THAT(session->UpdateEpoch(epoch), IsOk());
    auto answer = session->CalcMask(0, weight);
    EXPECT_THAT(answer, IsOk());
    EXPECT_EQ(answer->epoch, epoch);
    zeros.push_back(answer->mask.pruned());
  }
  return zeros;
}

TEST(AgpPrunerTest, PrunesAsTheTableOfTheExampleSays) {
  EXPECT_THAT(ZerosByEpoch(Rule(0, 0.8, 0, 10, 1), OneTo(100), 10),
              ElementsAre(0, 23, 42, 56, 66, 72, 77, 79, 79, 80, 80));
}

TEST(AgpPrunerTest, FollowsTheFormulaForOtherParameters) {
  struct Case {
    double initial, final;
    int start, end, frequency;
  };
  for (const Case& c : {Case{0.1, 0.9, 0, 10, 1}, Case{0, 0.5, 2, 9, 2}, Case{0.25, 0.75, 1, 12, 3},
                        Case{0.5, 0.5, 0, 5, 1}, Case{0, 1, 3, 6, 1}}) {
    const int64_t n = 1000;
    const int64_t span = (c.end - c.start - 1) / c.frequency * c.frequency;
    std::vector<int64_t> expected;
    int64_t pruned = 0;
    for (int e = 0; e <= 20; ++e) {
      if (e >= c.start && (e - c.start) % c.frequency == 0) {
        const double left = 1.0 - static_cast<double>(e - c.start) / static_cast<double>(span);
        double target = c.final + (c.initial - c.final) * std::pow(left, 3.0);
        if (e >= c.end) target = c.final;
        target = std::min(std::max(target, c.initial), c.final);
        pruned = std::max(pruned, static_cast<int64_t>(static_cast<double>(n) * target));
      }
      expected.push_back(pruned);
    }
    EXPECT_EQ(
        ZerosByEpoch(Rule(c.initial, c.final, c.start, c.end, c.frequency), Random({n}, 3), 20),
        expected)
        << c.initial << " to " << c.final << " in epochs " << c.start << " to " << c.end;
  }
}

TEST(AgpPrunerTest, NeverRevivesAPrunedWeight) {
  auto session = BindOne("agp", Rule(0, 0.8, 0, 10, 1), {100});
  std::string before(100, '1');
  for (int epoch = 0; epoch <= 10; ++epoch) {
    ASSERT_THAT(session->UpdateEpoch(epoch), IsOk());
    // Other weights each time, so that the smallest ones are others, too.
    const std::string bits = Bits(session->CalcMask(0, Random({100}, epoch))->mask);
    for (int i = 0; i < 100; ++i) EXPECT_FALSE(before[i] == '0' && bits[i] == '1');
    before = bits;
  }
}

TEST(AgpPrunerTest, IsStaleOnlyWhenItWouldPruneMore) {
  auto session = BindOne("agp", Rule(0, 0.8, 0, 10, 2), {100});
  const at::Tensor weight = OneTo(100);
  EXPECT_TRUE(session->IsStale(0));
  ASSERT_THAT(session->CalcMask(0, weight), IsOk());
  EXPECT_FALSE(session->IsStale(0));
  ASSERT_THAT(session->UpdateEpoch(1), IsOk());
  EXPECT_FALSE(session->IsStale(0));  // not due
  ASSERT_THAT(session->UpdateEpoch(2), IsOk());
  EXPECT_TRUE(session->IsStale(0));
  ASSERT_THAT(session->CalcMask(0, weight), IsOk());
  EXPECT_FALSE(session->IsStale(0));
  ASSERT_THAT(session->UpdateEpoch(10), IsOk());
  ASSERT_THAT(session->CalcMask(0, weight), IsOk());
  ASSERT_THAT(session->UpdateEpoch(12), IsOk());
  EXPECT_FALSE(session->IsStale(0));  // nothing left to prune
}

TEST(AgpPrunerTest, ALowerEpochIsAcceptedAndRevivesNothing) {
  auto session = BindOne("agp", Rule(0, 0.8, 0, 10, 1), {100});
  ASSERT_THAT(session->UpdateEpoch(5), IsOk());
  const std::string bits = Bits(session->CalcMask(0, OneTo(100))->mask);
  ASSERT_THAT(session->UpdateEpoch(1), IsOk());
  EXPECT_FALSE(session->IsStale(0));
  EXPECT_EQ(Bits(session->CalcMask(0, OneTo(100))->mask), bits);
}

TEST(AgpPrunerTest, KeepsEverythingBeforeItsStart) {
  auto session = BindOne("agp", Rule(0.5, 0.8, 3, 10, 1), {100});
  auto answer = session->CalcMask(0, OneTo(100));
  ASSERT_THAT(answer, IsOk());
  EXPECT_EQ(answer->mask.pruned(), 0);
  EXPECT_EQ(answer->target_sparsity, 0.0);
  ASSERT_THAT(session->UpdateEpoch(3), IsOk());
  EXPECT_EQ(session->CalcMask(0, OneTo(100))->mask.pruned(), 50);
}

TEST(AgpPrunerTest, TheFirstWeightOfAnEpochDecides) {
  auto session = BindOne("agp", Rule(0, 0.8, 0, 10, 1), {100});
  ASSERT_THAT(session->UpdateEpoch(4), IsOk());
  const std::string first = Bits(session->CalcMask(0, OneTo(100))->mask);
  EXPECT_EQ(Bits(session->CalcMask(0, Random({100}, 1))->mask), first);
}

TEST(AgpPrunerTest, ReportsTheTargetOfTheLastRenewal) {
  auto session = BindOne("agp", Rule(0, 0.8, 0, 10, 3), {100});
  ASSERT_THAT(session->UpdateEpoch(3), IsOk());
  const auto at_renewal = session->CalcMask(0, OneTo(100))->target_sparsity;
  ASSERT_THAT(session->UpdateEpoch(5), IsOk());
  EXPECT_EQ(session->CalcMask(0, OneTo(100))->target_sparsity, at_renewal);
}

TEST(AgpPrunerTest, RefusesParametersThatContradictEachOther) {
  const auto bind = [](const json& rule) {
    return TryBind(MakeBinding("agp", json::array({rule}), {MakeLayer("a", {4})}));
  };
  EXPECT_THAT(
      bind(Rule(0, 0.8, 10, 10, 1)),
      IsInvalid("config_list[0].end_epoch is 10; it must be above start_epoch, which is 10"));
  EXPECT_THAT(bind(Rule(0, 0.8, 10, 3, 1)), IsInvalid(HasSubstr("end_epoch is 3")));
  EXPECT_THAT(bind(Rule(0.9, 0.8, 0, 10, 1)),
              IsInvalid(HasSubstr("initial_sparsity is 0.9; it must be in [0, final_sparsity]")));
  EXPECT_THAT(bind(Rule(0, 0.8, 0, 10, 0)), IsInvalid(HasSubstr("frequency is 0")));
  EXPECT_THAT(bind(Rule(0, 0.8, 0, 10, 10)),
              IsInvalid(HasSubstr(
                  "end_epoch is 10; it must be above start_epoch + frequency, which is 10")));
  EXPECT_THAT(
      bind(Rule(0, 0.8, 0, 1, 1)),
      IsInvalid(HasSubstr("end_epoch is 1; it must be above start_epoch + frequency, which is 1")));
  EXPECT_THAT(bind(Rule(0, 0.8, 0, 10, 9)), IsOk());
}

}  // namespace
}  // namespace nni_compression::compression
