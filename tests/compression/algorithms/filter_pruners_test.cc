#include <cmath>

#include "absl/strings/str_cat.h"
#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// Each filter has two weights.
const std::vector<double> kWeights = {3, -4, 1, 0, -5, 12, 0, 0.5, 6, 8};

std::string MaskFor(const std::string& algorithm, json rule) {
  auto session = BindOne(algorithm, std::move(rule), {5, 2});
  GiveStatistics(*session, 0);
  return Bits(session->CalcMask(0, Values(kWeights, DataType::kFloat32, {5, 2}))->mask);
}

TEST(FilterPrunerTest, NormsRemoveTheSmallestFilters) {
  EXPECT_EQ(MaskFor("l1_filter", {{"sparsity", 0.5}}), "1100110011");
  EXPECT_EQ(MaskFor("l2_filter", {{"sparsity", 0.6}}), "0000110011");
  EXPECT_EQ(MaskFor("l1_filter", {{"sparsity", 1}}), "0000110000") << "the largest stays";
  EXPECT_EQ(MaskFor("l1_filter", {{"sparsity", 0.19}}), "1111111111") << "trunc(5 * 0.19) is 0";
}

TEST(FilterPrunerTest, L1AndL2DifferWhereTheyShould) {
  auto l1 = BindOne("l1_filter", {{"sparsity", 0.5}}, {2, 2});
  auto l2 = BindOne("l2_filter", {{"sparsity", 0.5}}, {2, 2});
  const at::Tensor weight = Values({3, 3, 5, 0}, DataType::kFloat32, {2, 2});
  EXPECT_EQ(Bits(l1->CalcMask(0, weight)->mask), "1100");
  EXPECT_EQ(Bits(l2->CalcMask(0, weight)->mask), "0011");
}

TEST(FilterPrunerTest, FpgmRemovesWhatIsNearTheOthers) {
  auto session = BindOne("fpgm", {{"sparsity", 0.34}}, {3, 2});
  const at::Tensor weight = Values({0, 0, 3, 4, 6, 8}, DataType::kFloat32, {3, 2});
  EXPECT_EQ(Bits(session->CalcMask(0, weight)->mask), "110011");
}

TEST(FilterPrunerTest, FpgmRefusesLayersOfTooManyFilters) {
  EXPECT_THAT(TryBind(MakeBinding("fpgm", {{{"sparsity", 0.5}}}, {MakeLayer("a", {16385, 1})})),
              IsInvalid(AllOf(HasSubstr("\"a\" has 16385 filters"), HasSubstr("at most 16384"))));
  EXPECT_THAT(
      TryBind(MakeBinding("l1_filter", {{{"sparsity", 0.5}}}, {MakeLayer("a", {1 << 21, 1})})),
      IsInvalid(HasSubstr("at most 1048576")));
}

TEST(FilterPrunerTest, TheChannelAxisSaysWhereFiltersAre) {
  auto session = BindOne("l1_filter", {{"sparsity", 0.5}}, {2, 4}, DataType::kFloat32, 1);
  const at::Tensor weight = Values({9, 1, 8, 2, 9, 1, 8, 2}, DataType::kFloat32, {2, 4});
  EXPECT_EQ(Bits(session->CalcMask(0, weight)->mask), "10101010");
}

TEST(FilterPrunerTest, StatisticsRankFilters) {
  struct Case {
    const char* algorithm;
    StatisticKind kind;
    std::vector<double> values;
    const char* mask;
  };
  for (const Case& one :
       std::vector<Case>{{"slim", StatisticKind::kParameter, {-3, 0.5, 2}, "110011"},
                         {"taylor", StatisticKind::kFilterTaylor, {3, 2, 1}, "111100"},
                         {"apoz", StatisticKind::kOutputZeroCount, {1, 0, 0.5}, "001111"},
                         {"mean_activation", StatisticKind::kOutputSum, {-1, 5, -7}, "111100"}}) {
    auto session = BindOne(one.algorithm, {{"sparsity", 0.34}}, {3, 2});
    const at::Tensor weight = Random({3, 2}, 1);
    EXPECT_THAT(session->CalcMask(0, weight),
                Fails(absl::StatusCode::kFailedPrecondition, HasSubstr("has no ")));
    const at::Tensor values = Values(one.values);
    ASSERT_THAT(session->AddStatistic(0, PartOf(one.kind, values)), IsOk());
    EXPECT_EQ(Bits(session->CalcMask(0, weight)->mask), one.mask) << one.algorithm;
  }
}

TEST(FilterPrunerTest, SlimNeedsNoStatisticOfAScaleItself) {
  auto session = TryBind(MakeBinding("slim", {{{"sparsity", 0.5}}},
                                     {MakeLayer("bn1", {4}), MakeLayer("bn2", {4})}))
                     .value();
  EXPECT_THAT(session->plan().rules[0]->StatisticsOf(session->layer(0)), IsEmpty());
  auto answers =
      session->CalcMasks({{0, Values({0.1, -0.2, 0.3, 4})}, {1, Values({5, 6, -0.01, 7})}});
  ASSERT_THAT(answers, IsOk());
  EXPECT_EQ(Bits((*answers)[0].mask), "0001");
  EXPECT_EQ(Bits((*answers)[1].mask), "1101");
}

TEST(FilterPrunerTest, ActivationsAreAnOptionOfTheScoresThatUseThem) {
  auto session = BindOne("apoz", {{"sparsity", 0.5}, {"activation", "relu6"}}, {3, 2});
  EXPECT_EQ(session->plan().rules[0]->traits().activation, OutputActivation::kRelu6);
  EXPECT_EQ(
      BindOne("mean_activation", {{"sparsity", 0.5}}, {3, 2})->plan().rules[0]->traits().activation,
      OutputActivation::kRelu);
  EXPECT_THAT(TryBind(MakeBinding("l1_filter", {{{"sparsity", 0.5}, {"activation", "relu"}}},
                                  {MakeLayer("a", {3, 2})})),
              IsInvalid(HasSubstr("unknown key \"activation\"")));
}

TEST(FilterPrunerTest, RandomHasAStructure) {
  auto session = BindOne("random", {{"sparsity", 0.5}, {"structure", "filter"}}, {40, 8});
  const std::string bits = Bits(session->CalcMask(0, Random({40, 8}, 1))->mask);
  int removed = 0;
  for (size_t f = 0; f < 40; ++f) {
    const std::string filter = bits.substr(8 * f, 8);
    EXPECT_TRUE(filter == "00000000" || filter == "11111111");
    removed += filter[0] == '0';
  }
  EXPECT_EQ(removed, 20);
  EXPECT_THAT(TryBind(MakeBinding("random", {{{"sparsity", 0.5}, {"round_to", 8}}},
                                  {MakeLayer("a", {3, 2})})),
              IsInvalid(AllOf(HasSubstr("round_to"), HasSubstr("structure filter"))));
}

TEST(FilterPrunerTest, RoundToKeepsMultiples) {
  EXPECT_EQ(MaskFor("l1_filter", {{"sparsity", 0.5}, {"round_to", 4}}), "1111110011");
  EXPECT_THAT(TryBind(MakeBinding("l1_filter", {{{"sparsity", 0.5}, {"round_to", 0}}},
                                  {MakeLayer("a", {3, 2})})),
              IsInvalid(AllOf(HasSubstr("round_to is 0"), HasSubstr("[1, 1024]"))));
}

TEST(FilterPrunerTest, RemovedFiltersNeverReturnAndSchedulesRenewMasks) {
  auto session = BindOne(
      "l1_filter", {{"schedule", "linear"}, {"final_sparsity", 0.8}, {"end_epoch", 4}}, {10, 3});
  std::vector<bool> gone(10, false);
  for (int epoch = 0; epoch <= 5; ++epoch) {
    ASSERT_THAT(session->UpdateEpoch(epoch), IsOk());
    EXPECT_EQ(session->IsStale(0), epoch <= 4) << epoch;
    auto answer = session->CalcMask(0, Random({10, 3}, static_cast<uint64_t>(epoch)));
    ASSERT_THAT(answer, IsOk());
    EXPECT_EQ(answer->mask.pruned(), 3 * std::min(2 * epoch, 8));
    for (size_t f = 0; f < 10; ++f) {
      const bool kept = answer->mask.kept(static_cast<int64_t>(3 * f));
      EXPECT_FALSE(gone[f] && kept);
      gone[f] = !kept;
    }
    EXPECT_FALSE(session->IsStale(0));
  }
}

TEST(FilterPrunerTest, AMaskOfTheTrainerIsKept) {
  auto session = BindOne("l1_filter", {{"sparsity", 0.5}}, {4, 2});
  ASSERT_THAT(session->SetMask(0, MaskOf("00101111")), IsOk());
  ASSERT_TRUE(session->IsStale(0));
  const at::Tensor weight = Values({9, 9, 9, 9, 1, 1, 5, 5}, DataType::kFloat32, {4, 2});
  EXPECT_EQ(Bits(session->CalcMask(0, weight)->mask), "00100011");
  EXPECT_FALSE(session->IsStale(0));
}

TEST(FilterPrunerTest, GlobalScopeComparesTheFiltersOfAllLayers) {
  Binding binding = MakeBinding("l1_filter", {{{"sparsity", 0.5}, {"scope", "global"}}},
                                {MakeLayer("a", {4, 1}), MakeLayer("b", {4, 1})});
  auto session = TryBind(binding).value();
  auto answers = session->CalcMasks({{0, Values({1, 2, 3, 4}, DataType::kFloat32, {4, 1})},
                                     {1, Values({0.5, 60, 70, 80}, DataType::kFloat32, {4, 1})}});
  ASSERT_THAT(answers, IsOk());
  EXPECT_EQ(Bits((*answers)[0].mask), "0001");
  EXPECT_EQ(Bits((*answers)[1].mask), "0111");
  EXPECT_THAT(session->StaleLayers(), IsEmpty());

  binding.config_list[0]["max_sparsity"] = 0.5;
  session = TryBind(binding).value();
  answers = session->CalcMasks({{0, Values({1, 2, 3, 4}, DataType::kFloat32, {4, 1})},
                                {1, Values({0.5, 60, 70, 80}, DataType::kFloat32, {4, 1})}});
  ASSERT_THAT(answers, IsOk());
  EXPECT_EQ(Bits((*answers)[0].mask), "0011");
  EXPECT_EQ(Bits((*answers)[1].mask), "0011");
}

TEST(FilterPrunerTest, AnUnreachableShareIsNotStaleForever) {
  auto session = TryBind(MakeBinding("l1_filter", {{{"sparsity", 1}, {"scope", "global"}}},
                                     {MakeLayer("a", {4, 1}), MakeLayer("b", {2, 3})}))
                     .value();
  auto answers = session->CalcMasks({{0, Random({4, 1}, 1)}, {1, Random({2, 3}, 2)}});
  ASSERT_THAT(answers, IsOk());
  EXPECT_EQ((*answers)[0].mask.pruned(), 3);
  EXPECT_EQ((*answers)[1].mask.pruned(), 3);
  EXPECT_THAT(session->StaleLayers(), IsEmpty());
}

TEST(FilterPrunerTest, AScoreBeyondFloat64IsRefused) {
  auto session = BindOne("l1_filter", {{"sparsity", 0.5}}, {2, 2}, DataType::kFloat64);
  EXPECT_THAT(session->CalcMask(0, Values({1, 2, 1e308, 1e308}, DataType::kFloat64, {2, 2})),
              IsInvalid(HasSubstr("the score of filter 1 of layer \"layer\"")));
}

// Groups.

Binding GroupBinding(std::vector<FilterGroup> groups, json rules = {{{"sparsity", 0.5}}}) {
  Binding binding =
      MakeBinding("l1_filter", std::move(rules),
                  {MakeLayer("a", {4, 1}), MakeLayer("b", {4, 2}), MakeLayer("c", {2, 3})});
  binding.filter_groups = std::move(groups);
  return binding;
}

std::vector<LayerWeight> GroupWeights() {
  return {{0, Values({1, 2, 3, 4}, DataType::kFloat32, {4, 1})},
          {1, Values({9, 9, 1, 1, 1, 1, 0, 0}, DataType::kFloat32, {4, 2})},
          {2, Values({1, 1, 1, 2, 2, 2}, DataType::kFloat32, {2, 3})}};
}

TEST(FilterGroupTest, ScoresAreAddedAndLayersLoseTheSameFilters) {
  auto session = TryBind(GroupBinding({{{{"a", {}}, {"b", {}}}, 1}})).value();
  EXPECT_TRUE(session->plan().rules[0]->joint);
  EXPECT_THAT(session->CalcMask(0, GroupWeights()[0].weight),
              IsInvalid(HasSubstr("are decided about together")));
  auto answers = session->CalcMasks(GroupWeights());
  ASSERT_THAT(answers, IsOk());
  EXPECT_EQ(Bits((*answers)[0].mask), "1010");  // scores 19, 4, 5, 4
  EXPECT_EQ(Bits((*answers)[1].mask), "11001100");
  EXPECT_EQ(Bits((*answers)[2].mask), "000111");
  EXPECT_EQ((*answers)[0].target_sparsity, 0.5);
  EXPECT_THAT(session->StaleLayers(), IsEmpty());
}

TEST(FilterGroupTest, UnitsMapFiltersOfDifferentLayers) {
  auto session = TryBind(GroupBinding({{{{"a", {1, 1, 0, 0}}, {"c", {}}}, 1}})).value();
  auto answers = session->CalcMasks(GroupWeights());
  ASSERT_THAT(answers, IsOk());
  EXPECT_EQ(Bits((*answers)[0].mask), "0011");  // unit 0: 7 + 3, unit 1: 3 + 6
  EXPECT_EQ(Bits((*answers)[1].mask), "11001100");
  EXPECT_EQ(Bits((*answers)[2].mask), "111000");
}

TEST(FilterGroupTest, ALoadedSessionAnswersAlike) {
  const Binding binding = GroupBinding({{{{"a", {}}, {"b", {}}}, 2}});
  auto session = TryBind(binding).value();
  ASSERT_THAT(session->CalcMasks(GroupWeights()), IsOk());
  auto other = TryBind(binding).value();
  ASSERT_THAT(other->Load(session->SaveGlobal(),
                          {session->SaveLayer(0), session->SaveLayer(1), session->SaveLayer(2)}),
              IsOk());
  EXPECT_THAT(other->StaleLayers(), IsEmpty());
  EXPECT_EQ(StateOf(*other), StateOf(*session));
}

TEST(FilterGroupTest, AGroupWithALayerThatIsNotCompressedKeepsItsFilters) {
  auto session =
      TryBind(GroupBinding({{{{"a", {}}, {"b", {}}}, 1}},
                           {{{"sparsity", 0.5}}, {{"exclude", true}, {"op_names", {"b"}}}}))
          .value();
  EXPECT_THAT(session->plan().warnings,
              ElementsAre(AllOf(HasSubstr("filter_groups[0] keeps all its filters"),
                                HasSubstr("\"a\""), HasSubstr("\"b\""))));
  EXPECT_THAT(session->StaleLayers(), ElementsAre(2));
  EXPECT_FALSE(session->plan().rules[0]->joint);
  EXPECT_THAT(session->CalcMask(0, GroupWeights()[0].weight),
              IsInvalid(HasSubstr("filter_groups[0] keeps all its filters")));
}

TEST(FilterGroupTest, WhatATrainerHasRemovedOfOneLayerGoesInAll) {
  auto session = TryBind(GroupBinding({{{{"a", {}}, {"b", {}}}, 1}})).value();
  ASSERT_THAT(session->SetMask(0, MaskOf("0001")), IsOk());
  auto answers = session->CalcMasks(GroupWeights());
  ASSERT_THAT(answers, IsOk());
  EXPECT_EQ(Bits((*answers)[0].mask), "0001") << "one filter stays";
  EXPECT_EQ(Bits((*answers)[1].mask), "00000011");
  EXPECT_THAT(session->StaleLayers(), IsEmpty());
}

TEST(FilterGroupTest, ManySmallMembersCostNoMoreThanTheirFilters) {
  constexpr int kMembers = 3000;
  std::vector<Layer> layers = {MakeLayer("wide", {kMaxFilters, 1})};
  FilterGroup group = {{{"wide", {}}}, 1};
  std::vector<LayerWeight> weights = {{0, Random({kMaxFilters, 1}, 1)}};
  for (int i = 0; i < kMembers; ++i) {
    layers.push_back(MakeLayer(absl::StrCat("layer", i), {1, 1}));
    group.members.push_back({layers.back().name, {0}});
    weights.push_back({i + 1, Random({1, 1}, 2)});
  }
  Binding binding = MakeBinding("l1_filter", {{{"sparsity", 0.5}}}, layers);
  binding.filter_groups = {group};
  auto session = TryBind(binding).value();
  // Members times units would take minutes.
  auto answers = session->CalcMasks(weights);
  ASSERT_THAT(answers, IsOk());
  EXPECT_EQ((*answers)[0].mask.pruned(), kMaxFilters / 2);
  EXPECT_EQ((*answers)[1].mask.pruned(), 0) << "it has no other";
  EXPECT_LT(session->plan().rules[0]->compressor->work_bytes(session->layer(1)), 1000);
}

TEST(FilterGroupTest, WhatContradictsItselfIsRefused) {
  const auto refused = [](std::vector<FilterGroup> groups, const char* message) {
    EXPECT_THAT(TryBind(GroupBinding(std::move(groups))), IsInvalid(HasSubstr(message)));
  };
  refused({{{}, 1}}, "filter_groups[0] has no members");
  refused({{{{"a", {}}, {"x", {}}}, 1}}, "filter_groups[0].members[1].layer is \"x\"");
  refused({{{{"a", {}}, {"c", {}}}, 1}},
          "filter_groups[0].members[1].layer is \"c\", which has 2 filters; it must have 4");
  refused({{{{"a", {}}, {"a", {}}}, 1}}, "which is in filter_groups[0] already");
  refused({{{{"a", {}}}, 1}, {{{"b", {}}, {"a", {}}}, 1}},
          "filter_groups[1].members[1].layer is \"a\", which is in filter_groups[0] already");
  refused({{{{"a", {0, 1}}}, 1}}, "filter_groups[0].members[0].units has 2 entries");
  refused({{{{"a", {0, 1, 3, 0}}}, 1}}, "filter_groups[0] has no filter of unit 2");
  refused({{{{"a", {0, 1, 4000000000, 0}}}, 1}},
          "filter_groups[0].members[0].units[2] is 4000000000");
  refused({{{{"a", {}}}, 3}}, "filter_groups[0].runs is 3; it must divide the number of units, 4");

  EXPECT_THAT(
      TryBind(GroupBinding({{{{"a", {}}, {"b", {}}}, 1}},
                           {{{"sparsity", 0.5}}, {{"sparsity", 0.6}, {"op_names", {"b"}}}})),
      IsInvalid(AllOf(HasSubstr("config_list[0] applies to \"a\""),
                      HasSubstr("config_list[1] to \"b\""), HasSubstr("filter_groups[0]"))));
  for (const json& rules : {json::array({{{"sparsity", 0.5}}}),
                            json::array({{{"sparsity", 0.5}, {"op_names", {"a"}}}})}) {
    Binding level = GroupBinding({{{{"a", {}}, {"b", {}}}, 1}}, rules);
    level.algorithm = "level";
    EXPECT_THAT(TryBind(level), IsInvalid(HasSubstr("level prunes no filters")));
  }
  refused({{{{"a", {0, 0, 0, 0}}, {"b", {}}, {"c", {}}}, 1}},
          "which has 2 filters; it must have 4");
}

}  // namespace
}  // namespace nni_compression::compression
