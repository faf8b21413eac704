// Rules that decide about all of their layers together.
#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

const at::Tensor kA = Values({1, 6, 3});
const at::Tensor kB = Values({2, 4, 5, 0.5});

std::unique_ptr<Session> Bind(const json& rule = {{"sparsity", 0.5}},
                              const std::string& algorithm = "global_magnitude") {
  return TryBind(MakeBinding(algorithm, json::array({rule}),
                             {MakeLayer("a", {3}), MakeLayer("b", {4})}))
      .value();
}

std::vector<LayerWeight> Both() { return {{0, kA}, {1, kB}}; }

std::vector<std::string> BitsOf(const std::vector<MaskAnswer>& answers) {
  std::vector<std::string> bits;
  for (const MaskAnswer& answer : answers) bits.push_back(Bits(answer.mask));
  return bits;
}

TEST(JointTest, OneThresholdDecidesAboutAllLayers) {
  auto session = Bind();
  EXPECT_TRUE(session->IsJoint(0));
  EXPECT_THAT(session->StaleLayers(), ElementsAre(0, 1));
  const auto answers = session->CalcMasks(Both());
  ASSERT_THAT(answers, IsOk());
  EXPECT_THAT(BitsOf(*answers), ElementsAre("011", "0110"));
  EXPECT_EQ((*answers)[0].target_sparsity, std::nullopt);
  EXPECT_THAT(session->StaleLayers(), IsEmpty());
}

TEST(JointTest, TheOrderOfArrivalChangesNothing) {
  auto session = Bind();
  const auto answers = session->CalcMasks({{1, kB}, {0, kA}});
  ASSERT_THAT(answers, IsOk());
  EXPECT_THAT(BitsOf(*answers), ElementsAre("0110", "011"));
}

TEST(JointTest, AMissingOrDoubledLayerIsRefusedAndNothingChanges) {
  auto session = Bind();
  const std::string before = StateOf(*session);
  EXPECT_THAT(session->CalcMasks({{0, kA}}),
              IsInvalid("layer \"b\" is missing: the 2 layers of config_list[0] are decided about "
                        "together and have to be sent in the same call"));
  EXPECT_THAT(session->CalcMask(1, kB), IsInvalid(HasSubstr("layer \"a\" is missing")));
  EXPECT_THAT(session->CalcMasks({{0, kA}, {1, kB}, {0, kA}}),
              IsInvalid("layer \"a\" is given twice"));
  EXPECT_THAT(session->CalcMasks({{0, kA}, {1, Values({1, NAN, 2, 3})}}),
              IsInvalid(HasSubstr("layer \"b\": element 1 is ")));
  EXPECT_THAT(session->CalcMasks({{0, kA}, {1, Values({1, 2})}}),
              IsInvalid(HasSubstr("has shape [2]")));
  EXPECT_EQ(StateOf(*session), before);
  EXPECT_TRUE(session->TakeChanges().empty());
  EXPECT_THAT(session->StaleLayers(), ElementsAre(0, 1));
}

TEST(JointTest, TheFirstCompleteCallDecidesForAllRanks) {
  auto session = Bind();
  const auto first = BitsOf(*session->CalcMasks(Both()));
  const auto second = session->CalcMasks({{0, Values({9, 1, 1})}, {1, Values({0, 0, 0, 9})}});
  ASSERT_THAT(second, IsOk());
  EXPECT_EQ(BitsOf(*second), first);
  // Nothing is stale, so that a part suffices.
  EXPECT_EQ(Bits(session->CalcMask(1, kB)->mask), first[1]);
}

TEST(JointTest, LayersAreStaleTogether) {
  auto session = Bind({{"final_sparsity", 0.9}, {"end_epoch", 4}, {"scope", "global"}}, "agp");
  ASSERT_THAT(session->CalcMasks(Both()), IsOk());
  EXPECT_THAT(session->StaleLayers(), IsEmpty());
  std::vector<std::string> before = {"111", "1111"};
  for (int64_t epoch = 1; epoch <= 5; ++epoch) {
    ASSERT_THAT(session->UpdateEpoch(epoch), IsOk());
    EXPECT_EQ(session->IsStale(0), session->IsStale(1));
    // Other weights each time, so that others are the smallest.
    const auto answers =
        session->CalcMasks({{0, Random({3}, epoch)}, {1, Random({4}, 50 + epoch)}});
    ASSERT_THAT(answers, IsOk());
    for (size_t l = 0; l < 2; ++l) {
      const std::string bits = Bits((*answers)[l].mask);
      for (size_t i = 0; i < bits.size(); ++i) EXPECT_FALSE(before[l][i] == '0' && bits[i] == '1');
      before[l] = bits;
    }
  }
  EXPECT_EQ(std::count(before[0].begin(), before[0].end(), '0') +
                std::count(before[1].begin(), before[1].end(), '0'),
            6);
}

TEST(JointTest, MasksOfTheTrainerCountTowardsTheTotal) {
  auto session = Bind();
  ASSERT_THAT(session->SetMask(0, MaskOf("000")), IsOk());
  EXPECT_THAT(session->StaleLayers(), ElementsAre(0, 1)) << "b was never answered";
  EXPECT_THAT(BitsOf(*session->CalcMasks(Both())), ElementsAre("000", "1111"));

  auto complete = Bind();
  ASSERT_THAT(complete->SetMask(0, MaskOf("000")), IsOk());
  ASSERT_THAT(complete->SetMask(1, MaskOf("1111")), IsOk());
  EXPECT_THAT(complete->StaleLayers(), IsEmpty());
}

TEST(JointTest, EachRuleIsDecidedAboutByItself) {
  const json rules = {{{"sparsity", 0.5}, {"op_names", {"a", "b"}}},
                      {{"sparsity", 0.9}, {"op_names", {"c"}}},
                      {{"op_names", {"d"}}, {"exclude", true}}};
  auto session = TryBind(MakeBinding("lamp", rules,
                                     {MakeLayer("c", {10}), MakeLayer("a", {3}),
                                      MakeLayer("d", {3}), MakeLayer("b", {4})}))
                     .value();
  const auto answers = session->CalcMasks({{0, Random({10}, 1)}});
  ASSERT_THAT(answers, IsOk());
  EXPECT_EQ((*answers)[0].mask.pruned(), 9);
  EXPECT_THAT(session->StaleLayers(), ElementsAre(1, 3));
  EXPECT_THAT(session->CalcMasks({{1, kA}, {2, kA}, {3, kB}}),
              IsInvalid(HasSubstr("config_list[2] excludes it")));
  ASSERT_THAT(session->CalcMasks({{1, kA}, {3, kB}}), IsOk());
  EXPECT_THAT(session->StaleLayers(), IsEmpty());
}

TEST(JointTest, ALoadedSessionIsAsStaleAsTheOriginal) {
  auto session = Bind();
  ASSERT_THAT(session->CalcMasks(Both()), IsOk());
  auto other = Bind();
  EXPECT_TRUE(other->IsStale(0));
  ASSERT_THAT(other->Load(session->SaveGlobal(), {session->SaveLayer(0), session->SaveLayer(1)}),
              IsOk());
  EXPECT_FALSE(other->IsStale(0));
  EXPECT_EQ(StateOf(*other), StateOf(*session));
}

TEST(JointTest, LimitsHoldForEachLayer) {
  auto session = Bind({{"sparsity", 0.5}, {"min_sparsity", 0.4}, {"max_sparsity", 0.75}});
  // 3 of 7; at least 1 of each, at most 2 of a and 3 of b.
  EXPECT_THAT(BitsOf(*session->CalcMasks({{0, Values({9, 8, 7})}, {1, kB}})),
              ElementsAre("110", "0110"));
}

TEST(JointTest, LimitsThatCannotBeMetAreRefused) {
  const auto bind = [](const json& rule) {
    return TryBind(MakeBinding("global_magnitude", json::array({rule}),
                               {MakeLayer("a", {3}), MakeLayer("b", {4})}));
  };
  EXPECT_THAT(bind({{"sparsity", 0.5}, {"min_sparsity", 0.6}}),
              IsInvalid("config_list[0].min_sparsity is 0.6; it must be in [0, 0.5], up to the "
                        "sparsity of all layers together"));
  EXPECT_THAT(bind({{"sparsity", 0.5}, {"max_sparsity", 0.4}}),
              IsInvalid(HasSubstr("max_sparsity is 0.4; it must be in [0.5, 1]")));
  EXPECT_THAT(bind({{"sparsity", 0.6}, {"max_sparsity", 0.6}}),
              IsInvalid(HasSubstr("the layers of the rule lose at most 3 weights with it, rounded "
                                  "down for each, and 4 of 7 are to be removed")));
}

TEST(JointTest, ChoicesThatDoNotGoTogetherAreRefusedByName) {
  const auto bind = [](const std::string& algorithm, const json& rule) {
    return TryBind(MakeBinding(algorithm, json::array({rule}), {MakeLayer("a", {3})}));
  };
  EXPECT_THAT(bind("random", {{"sparsity", 0.5}, {"scope", "global"}, {"normalize", "lamp"}}),
              IsInvalid(HasSubstr("unknown key \"normalize\"")));
  EXPECT_THAT(
      bind("agp", {{"final_sparsity", 0.5}, {"end_epoch", 5}, {"normalize", "lamp"}}),
      IsInvalid(HasSubstr("normalize is \"lamp\"; it may be given only with scope global")));
  EXPECT_THAT(bind("agp", {{"final_sparsity", 0.5},
                           {"end_epoch", 5},
                           {"scope", "global"},
                           {"score", "random"},
                           {"normalize", "lamp"}}),
              IsInvalid(HasSubstr("only with scope global and score magnitude")));
  EXPECT_THAT(bind("lamp", {{"sparsity", 0.5}, {"scope", "layer"}}),
              IsInvalid(HasSubstr("unknown key \"scope\"")));
  EXPECT_THAT(bind("level", {{"sparsity", 0.5}, {"schedule", "sometimes"}}),
              IsInvalid(HasSubstr("it must be one of once, agp, exponential, iterative, linear")));
}

}  // namespace
}  // namespace nni_compression::compression
