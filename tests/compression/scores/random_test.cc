#include "compression/scores/score.h"
#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

std::string MaskFor(const nlohmann::json& rule, const std::string& name, int64_t n = 1000) {
  auto session =
      TryBind(MakeBinding("random", nlohmann::json::array({rule}), {MakeLayer(name, {n})})).value();
  return Bits(session->CalcMask(0, Random({n}, 1))->mask);
}

TEST(RandomScoreTest, SeedAndNameDecide) {
  const nlohmann::json half = {{"sparsity", 0.5}};
  const nlohmann::json other = {{"sparsity", 0.5}, {"seed", 1}};
  EXPECT_EQ(MaskFor(half, "a"), MaskFor(half, "a"));
  EXPECT_NE(MaskFor(half, "a"), MaskFor(half, "b"));
  EXPECT_NE(MaskFor(half, "a"), MaskFor(other, "a"));
}

// The number of runs of a random mask: mean n / 2 + 1 / 2, deviation sqrt(n) / 2.
TEST(RandomScoreTest, PlacesAreIndependent) {
  const std::string bits = MaskFor({{"sparsity", 0.5}}, "a", 40000);
  int runs = 1;
  for (size_t i = 1; i < bits.size(); ++i) runs += bits[i] != bits[i - 1];
  EXPECT_NEAR(runs, 20000, 500);
}

TEST(RandomScoreTest, ScoresDoNotDependOnTheWeight) {
  const ScoreInfo& info = *FindScore("random");
  const auto score =
      info.create(Options::Parse(info.options, {}, nlohmann::json::object(), "").value());
  const Layer layer = MakeLayer("a", {6});
  Layer bound = layer;
  bound.elements = 6;
  const Scores one = score->Of(bound, Random({6}, 1), {}).value();
  const Scores two = score->Of(bound, Random({6}, 2), {}).value();
  EXPECT_EQ(one.dtype, DataType::kFloat64);
  EXPECT_EQ(BytesOf(one.owned), BytesOf(two.owned));
  for (int i = 0; i < 6; ++i) {
    EXPECT_GE(static_cast<const double*>(one.data)[i], 0);
    EXPECT_LT(static_cast<const double*>(one.data)[i], 1);
  }
}

}  // namespace
}  // namespace nni_compression::compression
