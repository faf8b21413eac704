#include "compression/session/plan.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

absl::StatusOr<Plan> TryPlan(json config_list, std::vector<Layer> layers,
                             const std::string& framework = "pytorch",
                             const std::string& algorithm = "level") {
  const std::vector<json> rules(config_list.begin(), config_list.end());
  return MakePlan(*Registry::Builtin().Find(algorithm).value(), rules, framework, layers);
}

// Per layer the sparsity that it gets; -1: not compressed.
std::vector<double> Sparsities(const Plan& plan) {
  std::vector<double> result;
  for (const LayerPlan& layer : plan.layers) {
    result.push_back(layer.planned ? layer.planned->options.Number("sparsity") : -1);
  }
  return result;
}

std::vector<double> SparsitiesOf(json config_list, std::vector<Layer> layers) {
  auto plan = TryPlan(std::move(config_list), std::move(layers));
  EXPECT_THAT(plan, IsOk());
  return plan.ok() ? Sparsities(*plan) : std::vector<double>();
}

Layer Typed(std::string name, std::string op_type) {
  return MakeLayer(std::move(name), {4}, DataType::kFloat32, std::move(op_type));
}

std::vector<Layer> Layers(const std::vector<std::string>& names) {
  std::vector<Layer> layers;
  for (const std::string& name : names) layers.push_back(Typed(name, "Conv2d"));
  return layers;
}

TEST(ConfigListTest, TheThreeRulesOfNnisOverviewSelectAsItSays) {
  const json config_list = {{{"sparsity", 0.8}, {"op_types", {"default"}}},
                            {{"sparsity", 0.6}, {"op_names", {"op_name1", "op_name2"}}},
                            {{"exclude", true}, {"op_names", {"op_name3"}}}};
  auto plan = TryPlan(config_list, Layers({"op_name0", "op_name1", "op_name2", "op_name3"}));
  ASSERT_THAT(plan, IsOk());
  EXPECT_THAT(Sparsities(*plan), ElementsAre(0.8, 0.6, 0.6, -1));
  EXPECT_EQ(plan->layers[3].rule, 2);
  EXPECT_THAT(plan->warnings, IsEmpty());
  EXPECT_EQ(plan->rules.size(), 2u);
}

TEST(ConfigListTest, TheLastRuleThatMatchesWins) {
  EXPECT_THAT(SparsitiesOf({{{"sparsity", 0.1}}, {{"sparsity", 0.2}, {"op_names", {"a"}}}},
                           Layers({"a", "b"})),
              ElementsAre(0.2, 0.1));
  EXPECT_THAT(SparsitiesOf({{{"sparsity", 0.2}, {"op_names", {"a"}}}, {{"sparsity", 0.1}}},
                           Layers({"a", "b"})),
              ElementsAre(0.1, 0.1));
  EXPECT_THAT(SparsitiesOf({{{"exclude", true}}, {{"sparsity", 0.1}, {"op_names", {"b"}}}},
                           Layers({"a", "b"})),
              ElementsAre(-1, 0.1));
}

TEST(ConfigListTest, ALayerIsOfTheTypesThatItsOwnDerivesFrom) {
  Layer projection = Typed("projection", "NonDynamicallyQuantizableLinear");
  projection.op_type_bases = {"Linear"};
  // The same type without bases, as an older client sends it.
  const Layer other = Typed("other", "NonDynamicallyQuantizableLinear");
  const std::vector<Layer> layers = {projection, other, Typed("fc", "Linear")};
  EXPECT_THAT(SparsitiesOf({{{"sparsity", 0.5}, {"op_types", {"Linear"}}}}, layers),
              ElementsAre(0.5, -1, 0.5));
  EXPECT_THAT(SparsitiesOf({{{"sparsity", 0.5}, {"op_types", {"default"}}}}, layers),
              ElementsAre(0.5, -1, 0.5));
  EXPECT_THAT(
      SparsitiesOf({{{"sparsity", 0.5}},
                    {{"exclude", true}, {"op_types", {"Linear"}}},
                    {{"sparsity", 0.6}, {"op_types", {"Linear"}}, {"op_names", {"projection"}}}},
                   layers),
      ElementsAre(0.6, 0.5, -1));
  auto plan = TryPlan({{{"sparsity", 0.5}, {"op_types", {"Linear"}}}}, {projection});
  ASSERT_THAT(plan, IsOk());
  EXPECT_THAT(plan->warnings, IsEmpty());
}

TEST(ConfigListTest, PatternsMatchAllOfANameAndBesideNames) {
  const std::vector<Layer> layers = Layers(
      {"blocks.0.mlp.up", "blocks.1.mlp.up", "blocks.10.mlp.up", "blocks.1.mlp.up.lora", "head"});
  EXPECT_THAT(
      SparsitiesOf({{{"sparsity", 0.5}, {"op_names_re", {R"(blocks\.\d\.mlp\.up)"}}}}, layers),
      ElementsAre(0.5, 0.5, -1, -1, -1));
  EXPECT_THAT(
      SparsitiesOf({{{"sparsity", 0.5}, {"op_names_re", R"(.*\.up)"}, {"op_names", {"head"}}}},
                   layers),
      ElementsAre(0.5, 0.5, 0.5, -1, 0.5));
  EXPECT_THAT(SparsitiesOf({{{"sparsity", 0.5}, {"op_names", {"head", R"(re:.*\.lora)"}}},
                            {{"exclude", true}, {"op_names", "re:h.*"}}},
                           layers),
              ElementsAre(-1, -1, -1, 0.5, -1));
}

TEST(ConfigListTest, APatternCountsForEveryNameOfATiedWeightAndWithTheTypeOfTheRule) {
  Layer tied = Typed("embedding", "Embedding");
  tied.aliases = {"lm_head"};
  EXPECT_THAT(SparsitiesOf({{{"sparsity", 0.5}, {"op_names_re", {".*head"}}}}, {tied}),
              ElementsAre(0.5));
  EXPECT_THAT(
      SparsitiesOf({{{"sparsity", 0.5}, {"op_names_re", {"[ab]"}}, {"op_types", {"Linear"}}}},
                   {Typed("a", "Linear"), Typed("b", "Conv2d")}),
      ElementsAre(0.5, -1));
}

TEST(ConfigListTest, APatternThatMatchesNothingIsAWarning) {
  auto plan = TryPlan({{{"sparsity", 0.5}, {"op_names", {"a"}}, {"op_names_re", {"a|b", "A"}}}},
                      Layers({"a"}));
  ASSERT_THAT(plan, IsOk());
  EXPECT_THAT(
      plan->warnings,
      ElementsAre("config_list[0].op_names_re[1] is \"A\", which matches the name of no layer"));
}

TEST(ConfigListTest, PatternsThatAreNoneOrTooLargeAreRefused) {
  const auto refused = [](json rule) {
    rule["sparsity"] = 0.5;
    return TryPlan(json::array({rule}), Layers({"a"}));
  };
  EXPECT_THAT(
      refused({{"op_names_re", {"a", "(b"}}}),
      IsInvalid("config_list[0].op_names_re[1] is \"(b\"; it must be a regular expression as "
                "RE2 has them: missing ): (b"));
  EXPECT_THAT(refused({{"op_names", {"re:*"}}}),
              IsInvalid(HasSubstr("config_list[0].op_names[0] is \"*\"; it must be a regular")));
  EXPECT_THAT(refused({{"op_names", {"re:"}}}),
              IsInvalid("config_list[0].op_names[0] has 0 bytes; a pattern must have 1 to 1024"));
  EXPECT_THAT(refused({{"op_names_re", std::string(1025, 'a')}}),
              IsInvalid(HasSubstr("1025 bytes")));
  EXPECT_THAT(refused({{"op_names_re", 3}}),
              IsInvalid(HasSubstr("config_list[0].op_names_re is 3")));
  EXPECT_THAT(
      refused({{"op_names_re", std::vector<std::string>(257, "a")}}),
      IsInvalid("config_list[0].op_names_re[256] is \"a\"; a config_list may have at most 256 "
                "patterns"));
  const auto too_large = IsInvalid(HasSubstr("may have at most 8192 bytes; use * or +, or fewer"));
  std::string repetitions;
  for (int i = 0; i < 100; ++i) repetitions += "a{0,1000}";
  for (const std::string& pattern :
       {std::string("a{8192}"), std::string("(((a{20}){20}){20}){20}"), repetitions,
        std::string(".*a.{900}x"), std::string("\\pL{100}"),
        std::string("a{99999999999999999999}")}) {
    EXPECT_THAT(refused({{"op_names_re", pattern}}), too_large) << pattern;
  }
  EXPECT_THAT(refused({{"op_names_re", std::vector<std::string>(200, std::string(50, 'a'))}}),
              too_large);
  EXPECT_THAT(refused({{"op_names_re", {".*a.{50}x", R"((model|vit)\.layers\.\d{1,3}\..*)"}}}),
              IsOk());
}

TEST(ConfigListTest, ALayerThatNeedsAFilterIsLeftOutByRulesWithoutOne) {
  Layer position = Typed("position", "Encoder");
  position.shape = {1, 5, 8};
  position.needs_filter = true;
  // One of the same type that does not need one.
  const Layer other = Typed("other", "Encoder");
  const std::vector<Layer> layers = {position, other};
  EXPECT_THAT(SparsitiesOf({{{"sparsity", 0.5}}}, layers), ElementsAre(-1, 0.5));
  EXPECT_THAT(SparsitiesOf({{{"sparsity", 0.5}, {"op_types", {"default"}}}}, layers),
              ElementsAre(-1, -1));
  EXPECT_THAT(SparsitiesOf({{{"sparsity", 0.5}, {"op_types", {"Encoder"}}}}, layers),
              ElementsAre(0.5, 0.5));
  EXPECT_THAT(
      SparsitiesOf({{{"sparsity", 0.5}, {"op_names_re", {"pos.*"}}}, {{"sparsity", 0.6}}}, layers),
      ElementsAre(0.5, 0.6));
  auto plan = TryPlan({{{"sparsity", 0.5}}}, layers);
  ASSERT_THAT(plan, IsOk());
  EXPECT_THAT(plan->warnings, IsEmpty());
}

TEST(ConfigListTest, PatternsThatExplodeInOtherEnginesTakeLinearTime) {
  const std::vector<Layer> layers = Layers({std::string(1024, 'a'), std::string(1023, 'a') + "b"});
  EXPECT_THAT(
      SparsitiesOf({{{"sparsity", 0.5}, {"op_names_re", {"(a*)*(a|aa)+(a?){50}"}}}}, layers),
      ElementsAre(0.5, -1));
}

TEST(ConfigListTest, BothFiltersOfARuleMustMatch) {
  EXPECT_THAT(
      SparsitiesOf({{{"sparsity", 0.5}, {"op_types", {"Linear"}}, {"op_names", {"a", "b"}}}},
                   {Typed("a", "Linear"), Typed("b", "Conv2d"), Typed("c", "Linear")}),
      ElementsAre(0.5, -1, -1));
}

TEST(ConfigListTest, NoFilterMatchesEveryLayer) {
  EXPECT_THAT(
      SparsitiesOf({{{"sparsity", 0.5}}}, {Typed("a", "Linear"), Typed("b", "BatchNorm2d")}),
      ElementsAre(0.5, 0.5));
}

TEST(ConfigListTest, DefaultStandsAloneOrInAListAndAStringIsAListOfOne) {
  const std::vector<Layer> layers = {Typed("a", "Linear"), Typed("b", "LSTM"), Typed("c", "GRU")};
  EXPECT_THAT(SparsitiesOf({{{"sparsity", 0.5}, {"op_types", "default"}}}, layers),
              ElementsAre(0.5, -1, -1));
  EXPECT_THAT(SparsitiesOf({{{"sparsity", 0.5}, {"op_types", {"LSTM", "default"}}}}, layers),
              ElementsAre(0.5, 0.5, -1));
  EXPECT_THAT(SparsitiesOf({{{"sparsity", 0.5}, {"op_types", "GRU"}}}, layers),
              ElementsAre(-1, -1, 0.5));
  EXPECT_THAT(SparsitiesOf({{{"sparsity", 0.5}, {"op_names", "b"}}}, layers),
              ElementsAre(-1, 0.5, -1));
}

TEST(ConfigListTest, DefaultTypesAreThoseOfTheFramework) {
  EXPECT_THAT(DefaultOpTypes("pytorch").value(),
              testing::UnorderedElementsAre("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d",
                                            "ConvTranspose2d", "ConvTranspose3d", "Linear",
                                            "Bilinear", "PReLU", "Embedding", "EmbeddingBag"));
  EXPECT_THAT(DefaultOpTypes("tensorflow").value(),
              testing::UnorderedElementsAre("Conv2D", "Conv3D", "DepthwiseConv2dNative", "MatMul"));
  EXPECT_THAT(
      DefaultOpTypes("keras").value(),
      testing::UnorderedElementsAre("Conv1D", "Conv2D", "Conv3D", "Conv1DTranspose",
                                    "Conv2DTranspose", "Conv3DTranspose", "DepthwiseConv2D",
                                    "SeparableConv1D", "SeparableConv2D", "Dense", "Embedding"));
  EXPECT_THAT(DefaultOpTypes("torch"), IsInvalid(HasSubstr("did you mean `pytorch`?")));
}

TEST(ConfigListTest, ACheckpointAloneKnowsDefaultOnly) {
  const std::vector<Layer> layers = {Typed("fc.weight", "weight"), Typed("fc.bias", "other")};
  auto plan = TryPlan({{{"sparsity", 0.5}, {"op_types", {"default"}}}}, layers, "generic");
  ASSERT_THAT(plan, IsOk());
  EXPECT_THAT(Sparsities(*plan), ElementsAre(0.5, -1));
  EXPECT_THAT(TryPlan({{{"sparsity", 0.5}, {"op_types", {"Conv2d"}}}}, layers, "generic"),
              IsInvalid(AllOf(HasSubstr("config_list[0].op_types[0] is \"Conv2d\""),
                              HasSubstr("it must be \"default\""))));
}

TEST(ConfigListTest, TheWinningRuleTakesNothingFromEarlierOnes) {
  EXPECT_THAT(TryPlan({{{"sparsity", 0.5}}, {{"op_names", {"a"}}}}, Layers({"a"})),
              IsInvalid(AllOf(HasSubstr("config_list[1].sparsity is missing"),
                              HasSubstr("does not inherit options from earlier ones"))));
}

TEST(ConfigListTest, RulesThatLoseAreValidatedToo) {
  EXPECT_THAT(TryPlan({{{"sparsity", 7}}, {{"sparsity", 0.5}}}, Layers({"a"})),
              IsInvalid("config_list[0].sparsity is 7; it must be in [0, 1]"));
  EXPECT_THAT(TryPlan({{{"sparsity", 0.5}}, {{"exclude", true}, {"sparsity", 7}}}, Layers({"a"})),
              IsInvalid("config_list[1].sparsity is 7; it must be in [0, 1]"));
  EXPECT_THAT(TryPlan({{{"final_sparsity", 0.5}, {"end_epoch", 1}, {"op_names", {"nobody"}}}},
                      Layers({"a"}), "pytorch", "agp"),
              IsInvalid(HasSubstr("config_list[0].end_epoch is 1")));
}

TEST(ConfigListTest, ANameOfATiedWeightSelectsIt) {
  Layer tied = Typed("encoder", "Embedding");
  tied.aliases = {"decoder"};
  EXPECT_THAT(SparsitiesOf({{{"sparsity", 0.5}, {"op_names", {"decoder"}}}}, {tied}),
              ElementsAre(0.5));
  EXPECT_THAT(
      SparsitiesOf({{{"sparsity", 0.5}}, {{"sparsity", 0.6}, {"op_names", {"decoder", "encoder"}}}},
                   {tied}),
      ElementsAre(0.6));
}

TEST(ConfigListTest, RulesThatTreatTheNamesOfATiedWeightDifferentlyAreAnError) {
  Layer tied = Typed("encoder", "Embedding");
  tied.aliases = {"decoder"};
  EXPECT_THAT(
      TryPlan({{{"sparsity", 0.5}}, {{"exclude", true}, {"op_names", {"decoder"}}}}, {tied}),
      IsInvalid(AllOf(HasSubstr("config_list[0] applies to \"encoder\""),
                      HasSubstr("config_list[1] to \"decoder\""),
                      HasSubstr("names of one weight"))));
  EXPECT_THAT(
      SparsitiesOf({{{"sparsity", 0.5}}, {{"sparsity", 0.5}, {"op_names", {"decoder"}}}}, {tied}),
      ElementsAre(0.5));
}

// Comparing the rules for each name would take 30 G steps, which the watchdog of the tests ends.
TEST(ConfigListTest, LargeRulesAndManyNamesAreComparedOnce) {
  const json options = json{{"list", json(250000, nullptr)}};
  Layer tied = Typed("encoder", "Linear");
  for (int i = 0; i < 131071; ++i) tied.aliases.push_back(absl::StrCat(i));
  const auto plan =
      TryPlan({{{"options", options}}, {{"options", options}, {"op_names", {"encoder"}}}}, {tied},
              "pytorch", "custom_pruner");
  ASSERT_THAT(plan, IsOk());
  EXPECT_EQ(plan->layers[0].rule, 1);
}

TEST(ConfigListTest, ManyRulesAreNotTriedOnManyLayers) {
  json rules = json::array();
  for (int i = 0; i < 1024; ++i) rules.push_back({{"op_types", {"Linear"}}, {"sparsity", 0.5}});
  std::vector<Layer> layers;
  for (int i = 0; i < 32768; ++i) {
    layers.push_back(Typed(absl::StrCat(i), "Linear"));
    for (int j = 0; j < 3; ++j) layers.back().aliases.push_back(absl::StrCat(i, "_", j));
  }
  const auto plan = TryPlan(rules, layers);
  ASSERT_THAT(plan, IsOk());
  EXPECT_EQ(plan->layers.back().rule, 1023);
  EXPECT_EQ(plan->warnings.size(), 100u);
}

TEST(ConfigListTest, StopsSoonAfterACancellation) {
  std::vector<Layer> layers;
  for (int i = 0; i < 10000; ++i) layers.push_back(Typed(absl::StrCat(i), "Linear"));
  const auto algorithm = Registry::Builtin().Find("level");
  const std::vector<json> rules(10, {{"sparsity", 0.5}});
  int looks = 0;
  const auto cancelled_at = [&](int look) {
    looks = 0;
    return MakePlan(*algorithm.value(), rules, "pytorch", layers, Unfiltered::kEveryLayer,
                    [&] { return ++looks == look; })
        .status();
  };
  EXPECT_TRUE(absl::IsCancelled(cancelled_at(1)));
  EXPECT_TRUE(absl::IsCancelled(cancelled_at(20)));
  EXPECT_EQ(looks, 20);
  EXPECT_THAT(cancelled_at(0), IsOk());
  EXPECT_GE(looks, 10 + 10000 / 256);
}

TEST(ConfigListTest, WarnsAboutRulesThatDoNothingAndNamesThatNobodyHas) {
  auto plan = TryPlan({{{"sparsity", 0.1}, {"op_names", {"conv2"}}},
                       {{"sparsity", 0.2}, {"op_types", {"LSTM"}}},
                       {{"sparsity", 0.3}, {"op_names", {"conv", "conv9"}}},
                       {{"sparsity", 0.4}, {"op_names", {"conv2"}}}},
                      Layers({"conv1", "conv2"}));
  ASSERT_THAT(plan, IsOk());
  EXPECT_THAT(
      plan->warnings,
      ElementsAre(
          "config_list[0] has no effect: later rules win for every layer that it matches",
          "config_list[1] matches no layer",
          "config_list[1].op_types names \"LSTM\", which is the type of no layer",
          "config_list[2] matches no layer",
          AllOf(HasSubstr("config_list[2].op_names names \"conv\""), HasSubstr("did you mean")),
          AllOf(HasSubstr("config_list[2].op_names names \"conv9\""), HasSubstr("did you mean"))));
}

TEST(ConfigListTest, WarnsAboutATypeThatNoLayerHasBesideOthersThatMatch) {
  auto plan = TryPlan({{{"sparsity", 0.1}, {"op_types", {"default", "LSTM", "lstm", "Conv2D"}}}},
                      Layers({"a"}));
  ASSERT_THAT(plan, IsOk());
  EXPECT_THAT(
      plan->warnings,
      ElementsAre("config_list[0].op_types names \"LSTM\", which is the type of no layer",
                  "config_list[0].op_types names \"lstm\", which is the type of no layer",
                  "config_list[0].op_types names \"Conv2D\", which is the type of no layer; "
                  "did you mean `Conv2d`?"));
  // What `default` stands for need not be there.
  EXPECT_THAT(TryPlan({{{"sparsity", 0.1}, {"op_types", "default"}}}, Layers({"a"}))->warnings,
              IsEmpty());
}

// A convolution, a linear layer, and the norms between them.
std::vector<Layer> WithNorms() {
  return {MakeLayer("conv", {4, 2, 3, 3}, DataType::kFloat32, "Conv2d"),
          Typed("bn1", "BatchNorm2d"), MakeLayer("fc", {6, 4}, DataType::kFloat32, "Linear"),
          Typed("bn2", "BatchNorm1d")};
}

Plan PlanOfMatrices(json config_list) {
  const std::vector<json> rules(config_list.begin(), config_list.end());
  auto plan = MakePlan(*Registry::Builtin().Find("level").value(), rules, "pytorch", WithNorms(),
                       Unfiltered::kMatrices);
  EXPECT_THAT(plan, IsOk());
  return *std::move(plan);
}

TEST(ConfigListTest, ARuleWithoutFiltersCanLeaveVectorsOutAndSaysSo) {
  const Plan plan = PlanOfMatrices({{{"sparsity", 0.5}}});
  EXPECT_THAT(Sparsities(plan), ElementsAre(0.5, -1, 0.5, -1));
  EXPECT_EQ(plan.layers[1].rule, std::nullopt);
  EXPECT_THAT(plan.warnings,
              ElementsAre(HasSubstr("config_list[0] has neither op_types nor op_names and leaves 2 "
                                    "weights of one dimension out, such as \"bn1\"")));
}

TEST(ConfigListTest, VectorsAreCompressedWhereTheirTypeOrNameIsNamed) {
  const Plan plan = PlanOfMatrices({{{"sparsity", 0.5}},
                                    {{"sparsity", 0.2}, {"op_types", {"BatchNorm2d"}}},
                                    {{"sparsity", 0.1}, {"op_names", {"bn2"}}}});
  EXPECT_THAT(Sparsities(plan), ElementsAre(0.5, 0.2, 0.5, 0.1));
  EXPECT_THAT(plan.warnings, IsEmpty());
}

TEST(ConfigListTest, ARuleWithoutFiltersExcludesVectorsToo) {
  const Plan plan = PlanOfMatrices({{{"sparsity", 0.2}, {"op_names", {"bn1"}}},
                                    {{"exclude", true}},
                                    {{"sparsity", 0.1}, {"op_names", {"fc"}}}});
  EXPECT_THAT(Sparsities(plan), ElementsAre(-1, -1, 0.1, -1));
}

TEST(ConfigListTest, GivesAtMostAHundredWarnings) {
  json names = json::array();
  for (int i = 0; i < 500; ++i) names.push_back("nobody" + std::to_string(i));
  auto plan = TryPlan({{{"sparsity", 0.1}, {"op_names", names}}}, Layers({"a"}));
  ASSERT_THAT(plan, IsOk());
  EXPECT_EQ(plan->warnings.size(), 100u);
}

TEST(ConfigListTest, RefusesAnEmptyListAndTooManyRules) {
  EXPECT_THAT(TryPlan(json::array(), Layers({"a"})),
              IsInvalid("config_list has 0 rules; it must have 1 to 1024"));
  const json rule = {{"sparsity", 0.5}};
  EXPECT_THAT(TryPlan(json(1025, rule), Layers({"a"})), IsInvalid(HasSubstr("has 1025 rules")));
  EXPECT_THAT(TryPlan(json(1024, rule), Layers({"a"})), IsOk());
}

TEST(ConfigListTest, RefusesFiltersOfTheWrongKind) {
  const auto plan_with = [](const char* key, json value) {
    json rule = {{"sparsity", 0.5}};
    rule[key] = std::move(value);
    return TryPlan(json::array({rule}), Layers({"a"}));
  };
  EXPECT_THAT(plan_with("exclude", "yes"),
              IsInvalid("config_list[0].exclude is \"yes\"; it must be true or false"));
  EXPECT_THAT(plan_with("exclude", 1), IsInvalid(HasSubstr("must be true or false")));
  EXPECT_THAT(plan_with("op_types", 3), IsInvalid(HasSubstr("must be a list of strings")));
  EXPECT_THAT(plan_with("op_types", json::array()), IsInvalid(HasSubstr("op_types is empty")));
  EXPECT_THAT(plan_with("op_names", {1}), IsInvalid(HasSubstr("op_names[0] is 1")));
  EXPECT_THAT(plan_with("exclude", false), IsOk());
}

TEST(ConfigListTest, AsksTheAlgorithmAboutTheLayersThatItsRulesWin) {
  AlgorithmInfo picky = *Registry::Builtin().Find("level").value();
  picky.check_layer = [](const Options& options, const Layer& layer) {
    return layer.name == "b" ? absl::InvalidArgumentError(options.path() + " cannot have b")
                             : absl::OkStatus();
  };
  const std::vector<json> rules = {{{"sparsity", 0.5}}};
  EXPECT_THAT(MakePlan(picky, rules, "pytorch", Layers({"a", "c"})), IsOk());
  EXPECT_THAT(MakePlan(picky, rules, "pytorch", Layers({"a", "b"})),
              IsInvalid("config_list[0] cannot have b"));
}

TEST(ConfigListTest, PlansAThousandRulesOverManyLayersQuickly) {
  json config_list = json::array();
  for (int i = 0; i < 1000; ++i) {
    config_list.push_back({{"sparsity", 0.5}, {"op_names", {"layer" + std::to_string(i * 30)}}});
  }
  std::vector<std::string> names;
  for (int i = 0; i < 32768; ++i) names.push_back("layer" + std::to_string(i));
  auto plan = TryPlan(config_list, Layers(names));
  ASSERT_THAT(plan, IsOk());
  EXPECT_EQ(plan->layers[300].rule, 10);
  EXPECT_EQ(plan->layers[301].rule, std::nullopt);
}

}  // namespace
}  // namespace nni_compression::compression
