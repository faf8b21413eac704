#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "compression/extensions/loader.h"
#include "compression/session/state.h"
#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
namespace fs = std::filesystem;

std::string ScriptFolder(const std::string& name) { return absl::StrCat(TEST_SCRIPTS, "/", name); }

absl::Status TryScripts(const std::string& folder) {
  Registry registry = Registry::Builtin();
  return LoadScripts(folder, &registry);
}

class ScriptTest : public testing::Test {
 protected:
  ScriptTest() {
    std::string pattern = testing::TempDir() + "/scriptsXXXXXX";
    folder_ = mkdtemp(pattern.data());
    EXPECT_THAT(LoadScripts(ScriptFolder("misbehaving"), &registry_), IsOk());
  }
  ~ScriptTest() override { fs::remove_all(folder_); }

  std::unique_ptr<Session> Bind(const std::string& algorithm, const json& rule = json::object()) {
    auto session = Session::Bind(
        registry_, MakeBinding(algorithm, json::array({rule}), {MakeLayer("fc", {2, 3})}));
    EXPECT_THAT(session, IsOk());
    return *std::move(session);
  }

  // Of a rule with three layers, which script "together" decides about.
  std::unique_ptr<Session> BindTogether(const std::string& fault = "none") {
    auto session = Session::Bind(
        registry_, MakeBinding("together", json::array({{{"fault", fault}}}),
                               {MakeLayer("a", {1}), MakeLayer("b", {3}), MakeLayer("c", {2, 2})}));
    EXPECT_THAT(session, IsOk());
    return *std::move(session);
  }

  // The masks of all layers, one after the other.
  static absl::StatusOr<std::string> AskTogether(Session& session) {
    std::vector<LayerWeight> weights;
    for (int i = 0; i < 3; ++i) weights.push_back({i, Random(session.layer(i).shape, 1)});
    const auto answers = session.CalcMasks(weights);
    if (!answers.ok()) return answers.status();
    std::string bits;
    for (const MaskAnswer& answer : *answers) absl::StrAppend(&bits, Bits(answer.mask), " ");
    return bits;
  }

  std::string folder_;
  Registry registry_;
};

TEST_F(ScriptTest, OptionsAreTheFieldsOfTheScriptsTuple) {
  const AlgorithmInfo& info = **registry_.Find("counter");
  EXPECT_EQ(info.source, "counter.pt");
  EXPECT_EQ(info.summary, "Keeps everything; its state counts the calls.");
  std::vector<std::string> rows;
  for (const OptionSpec& option : info.options) {
    rows.push_back(absl::StrCat(option.name, ": ", OptionTypeName(option.type), " = ",
                                option.default_value.dump(), " in ", OptionRange(option)));
  }
  EXPECT_THAT(rows, testing::ElementsAre(HasSubstr("strength: number = 0.5"),
                                         HasSubstr("times: integer = 2"),
                                         HasSubstr("quick: boolean = false"),
                                         "mode: string = \"plain\" in one of plain, fancy",
                                         HasSubstr("names: list of strings"),
                                         "levels: list of numbers = [1.0,2.0] in [0, inf)"));
}

TEST_F(ScriptTest, TheWeightIsUntouchedWhateverTheScriptDoesToItsArgument) {
  const at::Tensor weight = Values({1, 2, 3, 4, 5, 6}, DataType::kFloat32, {2, 3});
  EXPECT_THAT(Bind("counter")->CalcMask(0, weight), IsOk());
  EXPECT_EQ(weight.sum().item<float>(), 21);
}

TEST_F(ScriptTest, AttributesLastBetweenCallsAndAreSavedWithTheSession) {
  auto session = Bind("counter");
  const at::Tensor weight = Random({2, 3}, 1);
  EXPECT_EQ(Bits(session->CalcMask(0, weight)->mask), "011111");
  ASSERT_THAT(session->Step(1), IsOk());
  EXPECT_EQ(Bits(session->CalcMask(0, weight)->mask), "001111");
  auto other = Bind("counter");
  ASSERT_THAT(other->Load(session->SaveGlobal(), {session->SaveLayer(0)}), IsOk());
  ASSERT_THAT(other->Step(2), IsOk());
  EXPECT_EQ(Bits(other->CalcMask(0, weight)->mask), "000111");
}

TEST_F(ScriptTest, GradientsReachTheScript) {
  auto session = BindOne("moving", {{"sparsity", 0.5}}, {4});
  const at::Tensor weight = Values({1, 1, 1, 1});
  EXPECT_EQ(Bits(session->CalcMask(0, weight)->mask), "0011");  // ties by index
  // Weights 1 and 3 are moved towards 0, the others away.
  ASSERT_THAT(session->AddGradient(0, Values({-1, 2, -1, 2})), IsOk());
  ASSERT_THAT(session->UpdateEpoch(1), IsOk());
  EXPECT_TRUE(session->IsStale(0));
  EXPECT_EQ(Bits(session->CalcMask(0, weight)->mask), "1010");
  EXPECT_THAT(session->AddGradient(0, Values({1, 2})), IsInvalid(HasSubstr("shape")));
  EXPECT_THAT(Bind("counter")->AddGradient(0, Random({2, 3}, 1)),
              IsInvalid(HasSubstr("does not use gradients")));
}

TEST_F(ScriptTest, StatisticsAreTheFieldsOfTheScriptsLayer) {
  auto session = Bind("measured");
  std::vector<std::string> names;
  for (const StatisticInfo* info : session->plan().rules[0]->StatisticsOf(session->layer(0))) {
    names.emplace_back(info->name);
  }
  EXPECT_THAT(names, testing::ElementsAre("weight_gradient", "output_histogram"));
  const at::Tensor weight = Random({2, 3}, 1);
  const auto asks_for = [&](const std::string& name) {
    EXPECT_THAT(session->CalcMask(0, weight),
                Fails(absl::StatusCode::kFailedPrecondition,
                      absl::StrCat("layer \"fc\" has no ", name,
                                   " yet, which the script needs: send it with AddStatistics")));
  };
  asks_for("weight_gradient");
  // Gradients may be sent before.
  ASSERT_THAT(session->AddGradient(0, weight), IsOk());
  // The sum is 1 at [0, 0] and [1, 2], and -1 elsewhere.
  const auto add = [&](StatisticPart part, int exponent = 0) {
    part.exponent = exponent;
    ASSERT_THAT(session->AddStatistic(0, part), IsOk());
  };
  const auto kind = StatisticKind::kWeightGradient;
  add(PartOf(kind, Values({3, 1, 1, 1, 1, 1}, DataType::kFloat32, {2, 3}), 1, 0));
  add(PartOf(kind, Values({-2, -2, -2, -2, -2, 0}, DataType::kFloat64, {2, 3}), 1, 1));
  asks_for("output_histogram");
  add(PartOf(StatisticKind::kOutputHistogram, Values({1, 2, 3, 4})), -3);
  add(PartOf(StatisticKind::kOutputHistogram, Values({5, 6, 7, 8}), 2), -2);
  EXPECT_EQ(Bits(session->CalcMask(0, weight)->mask), "100001");
  ASSERT_THAT(session->UpdateEpoch(1), IsOk());
  ASSERT_THAT(session->AddGradient(0, weight), IsOk());
  EXPECT_THAT(session->CalcMask(0, weight),
              Fails(absl::StatusCode::kInternal,
                    HasSubstr("before 2 count 2 exponent 0 bins 5 9 14 8 count 2 exponent -2")));
}

TEST_F(ScriptTest, StatisticsReachAQuantizer) {
  auto session = Bind("calibrated");
  const at::Tensor weight = Random({2, 3}, 1);
  EXPECT_THAT(session->QuantizeWeight(0, weight, QuantizeReply::kParameters),
              Fails(absl::StatusCode::kFailedPrecondition,
                    HasSubstr("layer \"fc\" has no input_abs_max yet")));
  const auto kind = StatisticKind::kInputAbsMax;
  ASSERT_THAT(session->AddStatistic(0, PartOf(kind, Values({1, 4, 2}))), IsOk());
  const auto scale = [&] {
    return session->QuantizeWeight(0, weight, QuantizeReply::kParameters)->parameters->scale;
  };
  EXPECT_THAT(scale(), testing::ElementsAre(4));
  ASSERT_THAT(session->AddStatistic(0, PartOf(kind, Values({5, 0, 0}), 2)), IsOk());
  EXPECT_THAT(scale(), testing::ElementsAre(5));
}

TEST_F(ScriptTest, AStatisticThatALayerCannotHaveIsRefusedWhenItIsBound) {
  const json rule = {{"op_types", {"Linear"}}};
  EXPECT_THAT(Session::Bind(registry_, MakeBinding("calibrated", json::array({rule}),
                                                   {MakeLayer("bias", {2})})),
              IsInvalid(HasSubstr("without input channels, which input_abs_max is of")));
}

TEST_F(ScriptTest, AllLayersOfARuleAreDecidedTogetherWithOneState) {
  auto session = BindTogether();
  EXPECT_TRUE(session->IsJoint(0));
  EXPECT_THAT(session->CalcMask(0, Random({1}, 1)),
              IsInvalid(HasSubstr("layer \"b\" is missing: the 3 layers")));
  const at::Tensor weight = Values({1, 2, 3});
  ASSERT_THAT(session->CalcMasks({{0, Random({1}, 1)}, {1, weight}, {2, Random({2, 2}, 1)}}),
              IsOk());
  EXPECT_EQ(weight.sum().item<float>(), 6);  // the script writes to a copy
  EXPECT_THAT(session->StaleLayers(), testing::IsEmpty());
  EXPECT_EQ(AskTogether(*session).value(), "0 111 1111 ");

  auto other = BindTogether();
  std::vector<std::string> layers;
  for (int i = 0; i < 3; ++i) layers.push_back(session->SaveLayer(i));
  ASSERT_THAT(other->Load(session->SaveGlobal(), layers), IsOk());
  EXPECT_THAT(other->StaleLayers(), testing::IsEmpty());
  ASSERT_THAT(other->UpdateEpoch(1), IsOk());
  EXPECT_THAT(other->StaleLayers(), testing::ElementsAre(0, 1, 2));
  EXPECT_EQ(AskTogether(*other).value(), "0 011 1111 ");
  EXPECT_THAT(other->StaleLayers(), testing::IsEmpty());
}

TEST_F(ScriptTest, OneLayerThatIsNotDecidedMakesAllStale) {
  auto session = BindTogether();
  for (int i = 0; i < 2; ++i) {
    ASSERT_THAT(session->SetMask(i, Mask::Ones(session->layer(i).elements)), IsOk());
  }
  EXPECT_THAT(session->StaleLayers(), testing::ElementsAre(0, 1, 2));
  EXPECT_THAT(AskTogether(*session), IsOk());
  EXPECT_THAT(session->StaleLayers(), testing::IsEmpty());
}

TEST_F(ScriptTest, AMaskOfTheTrainerHoldsUntilTheNextRenewal) {
  Binding binding = MakeBinding("together", json::array({json::object()}),
                                {MakeLayer("a", {1}), MakeLayer("b", {3}), MakeLayer("c", {2, 2})});
  binding.clock.epoch = 3;  // of a checkpoint
  auto session = *Session::Bind(registry_, std::move(binding));
  for (int i = 0; i < 3; ++i) {
    ASSERT_THAT(session->SetMask(i, Mask::Ones(session->layer(i).elements)), IsOk());
  }
  EXPECT_THAT(session->StaleLayers(), testing::IsEmpty());
  EXPECT_EQ(AskTogether(*session).value(), "1 111 1111 ");
  ASSERT_THAT(session->UpdateEpoch(4), IsOk());
  EXPECT_THAT(session->StaleLayers(), testing::ElementsAre(0, 1, 2));
  EXPECT_EQ(AskTogether(*session).value(), "0 111 1111 ");
}

TEST_F(ScriptTest, StateOfAnotherMethodIsRefused) {
  const auto with = [](const Session& from, int i, const auto& change) {
    LayerState state = from.state(i);
    change(state.opaque);
    return EncodeLayer(from.layer(i), state);
  };
  const std::string part = "part:";
  auto together = BindTogether();
  ASSERT_THAT(AskTogether(*together), IsOk());
  std::vector<std::string> layers;
  for (int i = 0; i < 3; ++i) {
    layers.push_back(with(*together, i, [&](std::string& opaque) {
      if (const size_t at = opaque.find(part); at != std::string::npos) opaque.erase(at, 5);
    }));
  }
  ASSERT_THAT(together->Load(together->SaveGlobal(), layers), IsOk());
  ASSERT_THAT(together->UpdateEpoch(1), IsOk());
  EXPECT_THAT(AskTogether(*together),
              Fails(absl::StatusCode::kFailedPrecondition,
                    HasSubstr("was left by a script that had calc_mask, and this one has "
                              "calc_masks: bind the model again")));

  auto single = Bind("counter");
  const at::Tensor weight = Random({2, 3}, 1);
  ASSERT_THAT(single->CalcMask(0, weight), IsOk());
  const std::string layer =
      with(*single, 0, [&](std::string& opaque) { opaque.insert(opaque.find("PK"), part); });
  ASSERT_THAT(single->Load(single->SaveGlobal(), {layer}), IsOk());
  ASSERT_THAT(single->Step(1), IsOk());
  EXPECT_THAT(single->CalcMask(0, weight),
              Fails(absl::StatusCode::kFailedPrecondition,
                    HasSubstr("state of layer \"fc\" was left by a script that had calc_masks")));
}

TEST_F(ScriptTest, JointMasksThatAreWrongAreErrorsAndTheSessionStays) {
  const std::vector<std::pair<std::string, std::string>> faults = {
      {"few", "calc_masks of the script returned 2 masks; it must return one for each of the 3"},
      {"shape", "layer \"b\": calc_masks of the script returned a tensor of shape [7]"},
      {"nan", "layer \"b\": calc_masks of the script returned a mask with NaN"},
      {"raise", "no luck with b"}};
  for (const auto& [fault, message] : faults) {
    auto session = BindTogether(fault);
    const std::string before = StateOf(*session);
    EXPECT_THAT(AskTogether(*session), Fails(absl::StatusCode::kInternal, HasSubstr(message)));
    EXPECT_EQ(StateOf(*session), before);
  }
  auto session = BindTogether();
  const at::Tensor bad = Values({1, NAN, 3});
  EXPECT_THAT(session->CalcMasks({{0, Random({1}, 1)}, {1, bad}, {2, Random({2, 2}, 1)}}),
              IsInvalid(AllOf(HasSubstr("\"b\""), HasSubstr("1"))));
}

TEST_F(ScriptTest, AJointScriptGetsTheStatisticsOfAllLayers) {
  const json rule = {{"sparsity", 0.5}, {"end_epoch", 0}};
  auto session = *TryBind(
      MakeBinding("first_order", json::array({rule}), {MakeLayer("a", {2}), MakeLayer("b", {4})}));
  const std::vector<LayerWeight> weights = {{0, Random({2}, 1)}, {1, Random({4}, 2)}};
  const auto kind = StatisticKind::kWeightGradient;
  ASSERT_THAT(session->AddStatistic(0, PartOf(kind, Values({-3, 2}))), IsOk());
  EXPECT_THAT(session->CalcMasks(weights),
              Fails(absl::StatusCode::kFailedPrecondition,
                    HasSubstr("layer \"b\" has no weight_gradient yet")));
  ASSERT_THAT(session->AddStatistic(1, PartOf(kind, Values({1, -1.5, 0, 9}))), IsOk());
  const auto first = session->CalcMasks(weights);
  ASSERT_THAT(first, IsOk());
  EXPECT_EQ(Bits((*first)[0].mask) + Bits((*first)[1].mask), "110001");
  // What was removed stays so.
  ASSERT_THAT(session->AddStatistic(1, PartOf(kind, Values({100, 100, 100, -9}), 2)), IsOk());
  ASSERT_THAT(session->UpdateEpoch(1), IsOk());
  const auto second = session->CalcMasks(weights);
  ASSERT_THAT(second, IsOk());
  EXPECT_EQ(Bits((*second)[0].mask) + Bits((*second)[1].mask), "110001");
}

TEST_F(ScriptTest, TheStateOfARuleMayBeAsLargeAsItsLayersTogetherAllow) {
  constexpr int64_t kMany = 1'500'000;  // each with a byte of state
  auto session = *TryBind(MakeBinding("first_order", json::array({json::object()}),
                                      {MakeLayer("small", {2}), MakeLayer("large", {kMany})}));
  for (int i = 0; i < 2; ++i) GiveStatistics(*session, i);
  EXPECT_THAT(session->CalcMasks({{0, Random({2}, 1)}, {1, Random({kMany}, 1)}}), IsOk());
}

TEST_F(ScriptTest, WorkCountsTheCopiesOfWeightAndStatistics) {
  const auto work_bytes = [](const Session& session) {
    return session.plan().rules[0]->compressor->work_bytes(session.layer(0));
  };
  EXPECT_EQ(work_bytes(*Bind("counter")), 24);
  EXPECT_EQ(work_bytes(*Bind("calibrated")), 24 + 3 * 8);
  EXPECT_EQ(work_bytes(*BindOne("first_order", json::object(), {100}, DataType::kFloat16)),
            200 + 100 * 8);
}

TEST_F(ScriptTest, AnErrorHasTheScriptsOwnMessageAndTheSessionStays) {
  auto session = Bind("raises");
  const std::string before = StateOf(*session);
  EXPECT_THAT(
      session->CalcMask(0, Random({2, 3}, 1)),
      Fails(absl::StatusCode::kInternal, AllOf(HasSubstr("calc_mask of the script failed"),
                                               HasSubstr("epoch 0 is too early for Linear"),
                                               Not(HasSubstr("Traceback")), Not(HasSubstr("\n")))));
  EXPECT_EQ(StateOf(*session), before);
  ASSERT_THAT(session->UpdateEpoch(1), IsOk());
  EXPECT_THAT(session->CalcMask(0, Random({2, 3}, 1)), IsOk());
}

TEST_F(ScriptTest, AMaskOfAnotherShapeIsAnError) {
  EXPECT_THAT(Bind("wrong_shape")->CalcMask(0, Random({2, 3}, 1)),
              Fails(absl::StatusCode::kInternal,
                    HasSubstr("returned a tensor of shape [7], dtype Float, layout Strided and "
                              "device cpu; it must return")));
}

TEST_F(ScriptTest, AMaskWithNanAndAScaleOfZeroAreErrors) {
  const at::Tensor weight = Random({2, 3}, 1);
  EXPECT_THAT(Bind("nan_mask")->CalcMask(0, weight),
              Fails(absl::StatusCode::kInternal, HasSubstr("returned a mask with NaN")));
  EXPECT_THAT(Bind("zero_scale")->QuantizeWeight(0, weight, QuantizeReply::kCodes),
              Fails(absl::StatusCode::kInternal, HasSubstr("returned the scale 0")));
}

TEST_F(ScriptTest, RefusesWhatIsNoScriptWithItsFile) {
  EXPECT_THAT(TryScripts(ScriptFolder("signature")),
              IsInvalid(AllOf(HasSubstr("signature.pt"), HasSubstr("it must be (self, Tensor"))));
  const auto refuses = [](const std::string& name, const auto& message) {
    EXPECT_THAT(TryScripts(ScriptFolder(name)), IsInvalid(AllOf(HasSubstr(name + ".pt"), message)));
  };
  refuses("unknown_statistic",
          AllOf(HasSubstr("calc_mask: layer has the field weight_gradiant: "),
                HasSubstr("the statistics weight_gradient, filter_taylor, parameter, "),
                HasSubstr("input_range, output_range; did you mean `weight_gradient`?")));
  refuses("bare_statistic", HasSubstr("weight_gradient has the type Tensor; it must be a NamedT"));
  refuses("mean_statistic", HasSubstr("weight_gradient has the field mean: Tensor; a statistic has "
                                      "values: Tensor, count: int, exponent: int"));
  refuses("two_methods", HasSubstr("one of the methods calc_masks, calc_mask and quantize_weight"));
  refuses("joint_gradient", HasSubstr("it has on_gradient, which is for single layers"));
  refuses("joint_signature", HasSubstr("it must be (self, List[Tensor], List[Layer], Options"));
  EXPECT_THAT(TryScripts(ScriptFolder("no_method")),
              IsInvalid(HasSubstr("calc_mask and quantize_weight")));
  EXPECT_THAT(TryScripts(ScriptFolder("built_in_name")),
              Fails(absl::StatusCode::kAlreadyExists,
                    HasSubstr("level.pt: the algorithm \"level\" exists already")));
  std::ofstream(folder_ + "/text.pt") << "not an archive";
  EXPECT_THAT(TryScripts(folder_),
              IsInvalid(AllOf(HasSubstr("text.pt"), HasSubstr("cannot load"))));
}

TEST_F(ScriptTest, RefusesATruncatedScript) {
  const std::string file = folder_ + "/moving.pt";
  const auto size = fs::file_size(ScriptFolder("good") + "/moving.pt");
  for (const auto part : {size - 1, size / 2, size / 4}) {
    fs::copy(ScriptFolder("good") + "/moving.pt", file, fs::copy_options::overwrite_existing);
    fs::resize_file(file, part);
    EXPECT_THAT(TryScripts(folder_), IsInvalid(HasSubstr("moving.pt"))) << part;
  }
}

}  // namespace
}  // namespace nni_compression::compression
