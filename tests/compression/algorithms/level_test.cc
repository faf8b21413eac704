#include <ATen/ops/topk.h>

#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

Mask MaskFrom(Session& session, const at::Tensor& weight) {
  auto answer = session.CalcMask(0, weight);
  EXPECT_THAT(answer, IsOk());
  return answer->mask;
}

// NNI's: the k-th smallest magnitude is the threshold, and what is above it stays.
std::string NniLevelMask(const at::Tensor& weight, double sparsity) {
  const auto k = static_cast<int64_t>(static_cast<double>(weight.numel()) * sparsity);
  if (k == 0) return std::string(weight.numel(), '1');
  const at::Tensor magnitude = weight.abs();
  const at::Tensor threshold =
      std::get<0>(at::topk(magnitude.view(-1), k, -1, /*largest=*/false)).max();
  const at::Tensor kept = magnitude.gt(threshold).view(-1).contiguous();
  std::string bits;
  for (int64_t i = 0; i < kept.numel(); ++i) {
    bits.push_back(static_cast<const bool*>(kept.data_ptr())[i] ? '1' : '0');
  }
  return bits;
}

TEST(LevelPrunerTest, GivesTheMasksOfNnisFormulaWhereNoTieCrossesTheThreshold) {
  for (int seed = 0; seed < 40; ++seed) {
    const std::vector<int64_t> shape = {1 + seed % 7, 3, 1 + seed % 5};
    const double sparsity = 0.025 * seed;
    auto session = BindOne("level", {{"sparsity", sparsity}}, shape);
    const at::Tensor weight = Random(shape, seed);
    EXPECT_EQ(Bits(MaskFrom(*session, weight)), NniLevelMask(weight, sparsity)) << seed;
  }
}

TEST(LevelPrunerTest, PrunesExactlyTheTruncatedCount) {
  for (double sparsity : {0.0, 0.1, 0.29, 0.5, 0.8, 0.999, 1.0}) {
    for (int64_t n : {1, 3, 10, 100, 1001}) {
      auto session = BindOne("level", {{"sparsity", sparsity}}, {n});
      // All are equal: a threshold alone would prune all or none.
      const at::Tensor ones = Values(std::vector<double>(n, 1.0));
      EXPECT_EQ(MaskFrom(*session, ones).pruned(),
                static_cast<int64_t>(static_cast<double>(n) * sparsity));
    }
  }
}

TEST(LevelPrunerTest, KeepsTheMaskOfTheFirstWeightForTheSession) {
  auto session = BindOne("level", {{"sparsity", 0.5}}, {4});
  EXPECT_EQ(Bits(MaskFrom(*session, Values({1, 2, 3, 4}))), "0011");
  EXPECT_EQ(Bits(MaskFrom(*session, Values({4, 3, 2, 1}))), "0011");
  EXPECT_THAT(session->UpdateEpoch(7), IsOk());
  EXPECT_FALSE(session->IsStale(0));
  EXPECT_EQ(Bits(MaskFrom(*session, Values({4, 3, 2, 1}))), "0011");
}

TEST(LevelPrunerTest, GoesOnFromAMaskThatTheTrainerHas) {
  auto session = BindOne("level", {{"sparsity", 0.5}}, {4});
  ASSERT_THAT(session->SetMask(0, MaskOf("1110")), IsOk());
  EXPECT_TRUE(session->IsStale(0));
  EXPECT_EQ(Bits(MaskFrom(*session, Values({1, 2, 3, 4}))), "0110");
  EXPECT_FALSE(session->IsStale(0));
}

TEST(LevelPrunerTest, LeavesAMaskAloneThatHasEnoughZeros) {
  auto session = BindOne("level", {{"sparsity", 0.5}}, {4});
  ASSERT_THAT(session->SetMask(0, MaskOf("1000")), IsOk());
  EXPECT_FALSE(session->IsStale(0));
  EXPECT_EQ(Bits(MaskFrom(*session, Values({1, 2, 3, 4}))), "1000");
}

TEST(LevelPrunerTest, ReportsTheTarget) {
  auto session = BindOne("level", {{"sparsity", 0.3}}, {4});
  auto answer = session->CalcMask(0, Values({1, 2, 3, 4}));
  ASSERT_THAT(answer, IsOk());
  EXPECT_EQ(answer->target_sparsity, 0.3);
  EXPECT_EQ(answer->mask.sparsity(), 0.25);
}

}  // namespace
}  // namespace nni_compression::compression
