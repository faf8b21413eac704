#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <numeric>

#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

constexpr StatisticKind kKind = StatisticKind::kWeightGradient;

const json kMovementRule = {
    {"final_sparsity", 0.9}, {"schedule_unit", "step"}, {"end_step", 8}, {"frequency", 2}};

// The mask that removes so many of those that `before` keeps, the largest sums first.
std::string Expected(const at::Tensor& sums, const std::string& before, int64_t count) {
  std::vector<int> order(static_cast<size_t>(sums.numel()));
  std::iota(order.begin(), order.end(), 0);
  const float* const sum = sums.data_ptr<float>();
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    if (before[a] != before[b]) return before[a] == '0';
    return sum[a] > sum[b];
  });
  std::string bits(order.size(), '1');
  for (int64_t i = 0; i < count; ++i) bits[order[i]] = '0';
  return bits;
}

TEST(MovementTest, RemovesWhatMovesTowardsZeroAndNeverBringsItBack) {
  const int64_t n = 500;
  auto session = BindOne("movement", kMovementRule, {n});
  // With ties, and zeros of both signs.
  at::Tensor total = at::zeros({n}, at::kDouble);
  std::string mask(n, '1');
  const at::Tensor weight = Random({n}, 1);
  uint64_t sequence = 0;
  for (int64_t step = 0; step <= 10; ++step) {
    ASSERT_THAT(session->Step(step), IsOk());
    const at::Tensor part = (Random({n}, 10 + step) * 4).round() / 4 * (step % 2 == 0 ? 1 : -1);
    ASSERT_THAT(session->AddStatistic(0, PartOf(kKind, part, ++sequence)), IsOk());
    total += part;
    if (!session->IsStale(0)) continue;
    auto answer = session->CalcMask(0, weight);
    ASSERT_THAT(answer, IsOk());
    const std::string expected = Expected(total.to(at::kFloat), mask, answer->mask.pruned());
    EXPECT_EQ(Bits(answer->mask), expected) << step;
    mask = expected;
  }
  EXPECT_EQ(std::count(mask.begin(), mask.end(), '0'), 450);
}

TEST(MovementTest, IsOfAllLayersTogetherWithScopeGlobal) {
  json rule = kMovementRule;
  rule["scope"] = "global";
  auto session = TryBind(MakeBinding("movement", json::array({rule}),
                                     {MakeLayer("a", {40}), MakeLayer("b", {60})}))
                     .value();
  ASSERT_THAT(session->Step(8), IsOk());
  const at::Tensor a = Random({40}, 1), b = Random({60}, 2, DataType::kFloat32, 3);
  const std::vector<LayerWeight> weights = {{0, Random({40}, 3)}, {1, Random({60}, 4)}};
  ASSERT_THAT(session->AddStatistic(0, PartOf(kKind, a)), IsOk());
  const std::string before = StateOf(*session);
  EXPECT_THAT(session->CalcMasks(weights),
              Fails(absl::StatusCode::kFailedPrecondition, HasSubstr("layer \"b\" has no ")));
  EXPECT_EQ(StateOf(*session), before);
  ASSERT_THAT(session->AddStatistic(1, PartOf(kKind, b)), IsOk());
  auto answers = session->CalcMasks(weights);
  ASSERT_THAT(answers, IsOk());
  EXPECT_EQ(Bits((*answers)[0].mask) + Bits((*answers)[1].mask),
            Expected(at::cat({a, b}), std::string(100, '1'), 90));
}

TEST(MovementTest, NeedsNoPartWhereTheShareOfAllLayersIsLessThanAWeight) {
  json rule = kMovementRule;
  rule["scope"] = "global";
  rule["final_sparsity"] = 0.4;
  auto session = TryBind(MakeBinding("movement", json::array({rule}),
                                     {MakeLayer("a", {1}), MakeLayer("b", {1})}))
                     .value();
  ASSERT_THAT(session->Step(8), IsOk());
  const std::vector<LayerWeight> weights = {{0, Random({1}, 3)}, {1, Random({1}, 4)}};
  auto answers = session->CalcMasks(weights);
  ASSERT_THAT(answers, IsOk());
  EXPECT_EQ(Bits((*answers)[0].mask) + Bits((*answers)[1].mask), "11");
}

TEST(MovementTest, NeedsAPartBeforeItRemovesAnything) {
  auto session = BindOne("movement", kMovementRule, {10});
  const at::Tensor weight = Random({10}, 1);
  auto nothing = session->CalcMask(0, weight);
  ASSERT_THAT(nothing, IsOk()) << "at step 0 nothing is removed";
  EXPECT_EQ(nothing->mask.pruned(), 0);
  ASSERT_THAT(session->Step(4), IsOk());
  const std::string before = StateOf(*session);
  EXPECT_THAT(session->CalcMask(0, weight),
              Fails(absl::StatusCode::kFailedPrecondition,
                    AllOf(HasSubstr("layer \"layer\" has no weight_gradient yet"),
                          HasSubstr("send it with AddStatistics"))));
  EXPECT_EQ(StateOf(*session), before);
  ASSERT_THAT(session->AddStatistic(0, PartOf(kKind, weight)), IsOk());
  EXPECT_THAT(session->CalcMask(0, weight), IsOk());
}

}  // namespace
}  // namespace nni_compression::compression
