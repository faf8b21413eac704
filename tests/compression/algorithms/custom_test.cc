#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using nlohmann::json;

TEST(CustomPrunerTest, KeepsEverythingUntilTheTrainerSaysOtherwise) {
  auto session = BindOne("custom_pruner", json::object(), {4});
  auto answer = session->CalcMask(0, Values({1, 2, 3, 4}));
  ASSERT_THAT(answer, IsOk());
  EXPECT_EQ(Bits(answer->mask), "1111");
}

TEST(CustomPrunerTest, AnswersTheTrainersMaskWhateverTheWeightIs) {
  auto session = BindOne("custom_pruner", json::object(), {4});
  ASSERT_THAT(session->SetMask(0, MaskOf("0110")), IsOk());
  EXPECT_FALSE(session->IsStale(0));
  EXPECT_EQ(Bits(session->CalcMask(0, Values({9, 0, 0, 9}))->mask), "0110");
  ASSERT_THAT(session->SetMask(0, MaskOf("1000")), IsOk());
  EXPECT_EQ(Bits(session->CalcMask(0, Values({9, 0, 0, 9}))->mask), "1000");
}

TEST(CustomPrunerTest, ShowsTheTrainersOptionsInItsPlan) {
  const json rule = {{"implementation", "Mine"}, {"options", {{"a", {1, "b"}}}}};
  auto session = BindOne("custom_pruner", rule, {4});
  EXPECT_EQ(session->plan().rules[0]->options.json(), rule);
}

TEST(CustomQuantizerTest, LeavesWeightsAsTheyAre) {
  auto session = BindOne("custom_quantizer", json::object(), {4});
  auto answer = session->QuantizeWeight(0, Values({1, 2, 3, 4}), QuantizeReply::kValues);
  ASSERT_THAT(answer, IsOk());
  EXPECT_FALSE(answer->parameters.has_value());
  EXPECT_FALSE(session->IsStale(0));
}

}  // namespace
}  // namespace nni_compression::compression
