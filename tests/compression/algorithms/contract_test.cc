// What every algorithm promises. An algorithm's own test says only what is special about it.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

constexpr DataType kWeightTypes[] = {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16,
                                     DataType::kFloat64};

// All of an answer, so that equal strings mean equal answers.
std::string Describe(const QuantizedWeight& result) {
  std::string text = absl::StrCat(static_cast<int>(result.dtype), BytesOf(result.data));
  if (!result.parameters) return absl::StrCat("unquantized", text);
  const QuantizationParameters& p = *result.parameters;
  absl::StrAppend(&text, " ", static_cast<int>(p.formula), " ", static_cast<int>(p.rounding), " ",
                  p.bits, " ", p.code_min, " ", p.code_max, " ", p.channel_axis.value_or(-1), " ",
                  p.group_size);
  text.append(reinterpret_cast<const char*>(p.scale.data()), p.scale.size() * sizeof(float));
  text.append(reinterpret_cast<const char*>(p.zero_point.data()), p.zero_point.size() * 4);
  return text;
}

// An algorithm with its example, or with another rule that is worth all tests.
struct Case {
  std::string name;
  std::string algorithm;
  json rule;
};

class ContractTest : public testing::TestWithParam<Case> {
 protected:
  const AlgorithmInfo& info() const { return *AllAlgorithms().Find(GetParam().algorithm).value(); }
  bool pruner() const { return info().kind == AlgorithmKind::kPruner; }

  std::unique_ptr<Session> Bind(std::vector<int64_t> shape,
                                DataType dtype = DataType::kFloat32) const {
    return BindOne(GetParam().algorithm, GetParam().rule, std::move(shape), dtype);
  }

  absl::StatusOr<std::unique_ptr<Session>> BindRule(const json& rule) const {
    return TryBind(
        MakeBinding(GetParam().algorithm, json::array({rule}), {MakeLayer("layer", {6})}));
  }

  // Every form of answer there is, as text.
  absl::StatusOr<std::string> Ask(Session& session, const at::Tensor& weight) const {
    std::string text;
    GiveStatistics(session, 0);
    if (pruner()) {
      auto answer = session.CalcMask(0, weight);
      if (!answer.ok()) return answer.status();
      return absl::StrCat(Bits(answer->mask), " ", answer->target_sparsity.value_or(-1), " ",
                          answer->epoch);
    }
    for (auto reply : {QuantizeReply::kCodes, QuantizeReply::kValues, QuantizeReply::kParameters}) {
      auto answer = session.QuantizeWeight(0, weight, reply);
      if (!answer.ok()) return answer.status();
      absl::StrAppend(&text, Describe(*answer), "|");
    }
    return text;
  }
};

TEST_P(ContractTest, TheExampleBindsAndEveryLayerIsStale) {
  auto session = BindRule(GetParam().rule);
  ASSERT_THAT(session, IsOk());
  EXPECT_THAT((*session)->StaleLayers(), testing::ElementsAre(0));
  EXPECT_THAT((*session)->plan().warnings, testing::IsEmpty());
  EXPECT_FALSE((*session)->plan().rules[0]->options.json().empty() && !info().options.empty());
}

TEST_P(ContractTest, AnswersHaveTheShapeAndTypeOfTheWeight) {
  for (DataType dtype : kWeightTypes) {
    auto session = Bind({3, 2, 5}, dtype);
    const at::Tensor weight = Random({3, 2, 5}, 1, dtype);
    if (pruner()) {
      GiveStatistics(*session, 0);
      auto answer = session->CalcMask(0, weight);
      ASSERT_THAT(answer, IsOk());
      EXPECT_EQ(answer->mask.elements(), 30);
      EXPECT_EQ(answer->mask.bits().size(), 4);
      continue;
    }
    auto values = session->QuantizeWeight(0, weight, QuantizeReply::kValues);
    ASSERT_THAT(values, IsOk());
    if (!values->parameters) {  // weights pass unchanged
      EXPECT_EQ(values->data.size(), 0);
      continue;
    }
    EXPECT_EQ(values->dtype, dtype);
    EXPECT_EQ(values->data.size(), ByteLength(dtype, 30));
    auto codes = session->QuantizeWeight(0, weight, QuantizeReply::kCodes);
    ASSERT_THAT(codes, IsOk());
    EXPECT_EQ(codes->data.size(), ByteLength(codes->dtype, 30));
    auto parameters = session->QuantizeWeight(0, weight, QuantizeReply::kParameters);
    ASSERT_THAT(parameters, IsOk());
    EXPECT_EQ(parameters->data.size(), 0);
  }
}

TEST_P(ContractTest, LeavesTheWeightUntouched) {
  for (DataType dtype : kWeightTypes) {
    auto session = Bind({100}, dtype);
    const at::Tensor weight = Random({100}, 2, dtype);
    const std::string before = BytesOf(weight);
    ASSERT_THAT(Ask(*session, weight), IsOk());
    EXPECT_EQ(BytesOf(weight), before);
  }
}

TEST_P(ContractTest, GivesTheSameAnswerTwiceAndIsNotStaleInBetween) {
  for (DataType dtype : kWeightTypes) {
    auto session = Bind({100}, dtype);
    const at::Tensor weight = Random({100}, 3, dtype);
    const std::string first = Ask(*session, weight).value();
    EXPECT_FALSE(session->IsStale(0));
    const std::string state = StateOf(*session);
    EXPECT_EQ(Ask(*session, weight).value(), first);
    EXPECT_EQ(StateOf(*session), state);
  }
}

TEST_P(ContractTest, TakesASingleElement) {
  if (GetParam().name == "n_m") GTEST_SKIP() << "it has no group";
  for (DataType dtype : kWeightTypes) {
    for (double value : {0.0, -0.0, 1.0, -2.5}) {
      auto session = Bind({1, 1}, dtype);
      EXPECT_THAT(Ask(*session, Values({value}, dtype, {1, 1})), IsOk());
    }
  }
}

TEST_P(ContractTest, TakesConstantWeights) {
  for (double value : {0.0, 1.0, -1e-30, 3e38}) {
    auto session = Bind({70});
    EXPECT_THAT(Ask(*session, Values(std::vector<double>(70, value))), IsOk()) << value;
  }
}

TEST_P(ContractTest, AnswersTheSameAfterItsStateWasLoadedElsewhereAfterAnyCall) {
  auto original = Bind({50});
  for (int64_t t = 0; t < 12; ++t) {
    auto fresh = Bind({50});
    const std::vector<std::string> layers = {original->SaveLayer(0)};
    ASSERT_THAT(fresh->Load(original->SaveGlobal(), layers), IsOk());
    EXPECT_EQ(StateOf(*fresh), StateOf(*original));
    EXPECT_EQ(fresh->StaleLayers(), original->StaleLayers());
    for (Session* session : {original.get(), fresh.get()}) {
      ASSERT_THAT(session->UpdateEpoch(t), IsOk());
      ASSERT_THAT(session->Step(10 * t), IsOk());
    }
    const at::Tensor weight = Random({50}, 20 + t, DataType::kFloat32, t % 3 + 0.5);
    EXPECT_EQ(Ask(*fresh, weight).value(), Ask(*original, weight).value());
    EXPECT_EQ(StateOf(*fresh), StateOf(*original));
    // The copy goes on from here.
    original = std::move(fresh);
  }
}

// What a trainer's checkpoint has of a session: mask, remembered numbers, epoch and step.
std::unique_ptr<Session> FromCheckpoint(const Session& session) {
  Binding binding = session.binding();
  binding.clock = session.clock();
  binding.step_applied = true;
  auto restored = TryBind(std::move(binding)).value();
  if (session.state(0).mask) {
    EXPECT_THAT(restored->SetMask(0, *session.state(0).mask), IsOk());
  }
  EXPECT_THAT(restored->Remember(0, session.RememberedOf(0)), IsOk());
  return restored;
}

TEST_P(ContractTest, ASessionThatGoesOnFromACheckpointAnswersAsTheOneOfThatTimeDid) {
  auto original = Bind({50});
  const Traits& traits = original->plan().layers[0].planned->traits();
  for (int64_t t = 1; t < 12; ++t) {
    ASSERT_THAT(original->Step(t), IsOk());
    ASSERT_THAT(Ask(*original, Random({50}, t)), IsOk());
    const LayerState& state = original->state(0);
    if (traits.remembers_more) return;
    EXPECT_EQ(state.opaque, "");
    EXPECT_EQ(original->RememberedOf(0), state.memory) << "not all that is remembered is restored";

    auto restored = FromCheckpoint(*original);
    EXPECT_EQ(restored->RememberedOf(0), original->RememberedOf(0));
    for (Session* session : {original.get(), restored.get()}) {
      EXPECT_FALSE(*session->Step(t)) << "it was taken";
      ASSERT_THAT(session->UpdateEpoch(t), IsOk());
    }
    if (pruner()) {
      EXPECT_EQ(restored->StaleLayers(), original->StaleLayers());
    }
    const at::Tensor weight = Random({50}, 20 + t, DataType::kFloat32, t % 3 + 0.5);
    EXPECT_EQ(Ask(*restored, weight).value(), Ask(*original, weight).value());
    for (const Activation activation : {Activation::kOutput, Activation::kInput}) {
      if (!original->Quantizes(0, activation)) continue;
      const Range range{{-0.1f * static_cast<float>(t)}, {1.7f}};
      for (Session* session : {original.get(), restored.get()}) {
        ASSERT_THAT(session->ObserveActivation(0, activation, range), IsOk());
      }
    }
    EXPECT_EQ(restored->SaveLayer(0), original->SaveLayer(0));
  }
}

TEST_P(ContractTest, RefusesNumbersThatItDoesNotRemember) {
  auto session = Bind({6});
  const std::string before = StateOf(*session);
  EXPECT_THAT(session->Remember(0, {{"nonsense", {1}}}),
              IsInvalid(AllOf(HasSubstr("layer \"layer\" has \"nonsense\""))));
  const float nan = std::nanf("");
  for (const Remembered& known : session->plan().layers[0].planned->traits().remembered) {
    std::vector<std::vector<float>> wrong = {{}, {nan}, {1, INFINITY}, {1, 2, 3}};
    if (known.kind == Remembered::Kind::kScale) {
      wrong.insert(wrong.end(), {{-1}, {INFINITY}, {1, 2}});
    } else {
      wrong.insert(wrong.end(), {{1}, {2, 1}, {nan, 1}});
    }
    for (const std::vector<float>& values : wrong) {
      EXPECT_THAT(session->Remember(0, {{known.name, values}}),
                  IsInvalid(AllOf(HasSubstr(known.name), HasSubstr("; it must be "))));
    }
  }
  EXPECT_EQ(StateOf(*session), before);
}

TEST_P(ContractTest, RefusesAnUnknownOptionWithASuggestion) {
  json rule = GetParam().rule;
  rule["op_name"] = "a";
  EXPECT_THAT(BindRule(rule), IsInvalid(AllOf(HasSubstr("config_list[0] has the unknown key"),
                                              HasSubstr("did you mean `op_names`?"))));
  for (const OptionSpec& option : info().options) {
    if (option.name.size() == 1) continue;  // any word is as near
    json misspelt = GetParam().rule;
    misspelt.erase(option.name);
    misspelt[option.name + "x"] = 1;
    EXPECT_THAT(BindRule(misspelt), IsInvalid(HasSubstr("did you mean `" + option.name + "`?")));
  }
}

TEST_P(ContractTest, RefusesNumbersOutOfTheirRangeAndNamesIt) {
  for (const OptionSpec& option : info().options) {
    if (option.type != OptionType::kNumber && option.type != OptionType::kInteger &&
        option.type != OptionType::kIntegerPerType) {
      continue;
    }
    for (double value : {option.minimum - 1, option.maximum * 2 + 1, std::nan(""),
                         std::numeric_limits<double>::infinity()}) {
      json rule = GetParam().rule;
      rule[option.name] = value;
      EXPECT_THAT(BindRule(rule),
                  IsInvalid(AllOf(HasSubstr("config_list[0]." + option.name + " is "),
                                  HasSubstr(OptionRange(option)))));
    }
  }
}

TEST_P(ContractTest, RefusesOptionsOfAnotherType) {
  for (const OptionSpec& option : info().options) {
    json rule = GetParam().rule;
    rule[option.name] = json::array({json::object()});
    EXPECT_THAT(BindRule(rule), IsInvalid(HasSubstr("config_list[0]." + option.name)));
  }
}

TEST_P(ContractTest, SaysWhichRequiredOptionIsMissing) {
  for (const OptionSpec& option : info().options) {
    json rule = GetParam().rule;
    // It may exist with other choices only.
    if (!option.default_value.is_null() || !rule.contains(option.name)) continue;
    rule.erase(option.name);
    EXPECT_THAT(BindRule(rule),
                IsInvalid(HasSubstr("config_list[0]." + option.name + " is missing")));
  }
}

TEST_P(ContractTest, NamesLayerAndIndexOfAWeightThatIsNotFiniteAndStaysAsItWas) {
  for (DataType dtype : kWeightTypes) {
    for (double bad : {std::nan(""), std::numeric_limits<double>::infinity(),
                       -std::numeric_limits<double>::infinity()}) {
      auto session = Bind({100}, dtype);
      GiveStatistics(*session, 0);
      const std::string fresh = StateOf(*session);
      std::vector<double> values(100, 0.5);
      values[41] = values[77] = bad;
      const auto error = IsInvalid(AllOf(HasSubstr("\"layer\""), HasSubstr("element 41 is ")));
      EXPECT_THAT(Ask(*session, Values(values, dtype)), error);
      EXPECT_EQ(StateOf(*session), fresh);
      EXPECT_TRUE(session->IsStale(0));

      ASSERT_THAT(Ask(*session, Random({100}, 5, dtype)), IsOk());
      ASSERT_THAT(session->UpdateEpoch(1), IsOk());
      const std::string later = StateOf(*session);
      if (!pruner() || session->IsStale(0)) {
        EXPECT_THAT(Ask(*session, Values(values, dtype)), error);
      }
      EXPECT_EQ(StateOf(*session), later);
    }
  }
}

TEST_P(ContractTest, RefusesAWeightThatIsNotTheBoundOne) {
  auto session = Bind({2, 3});
  GiveStatistics(*session, 0);
  const std::string before = StateOf(*session);
  EXPECT_THAT(Ask(*session, Random({3, 2}, 1)),
              IsInvalid(HasSubstr("has shape [3, 2]; it must be the bound one, [2, 3]")));
  EXPECT_THAT(Ask(*session, Random({6}, 1)), IsInvalid(HasSubstr("has shape [6]")));
  EXPECT_THAT(Ask(*session, Random({2, 3}, 1, DataType::kFloat64)),
              IsInvalid(HasSubstr("it must be the bound one, float32")));
  EXPECT_THAT(Ask(*session, Random({3, 2}, 1).t()), IsInvalid(HasSubstr("contiguous")));
  EXPECT_THAT(Ask(*session, at::Tensor()), IsInvalid(HasSubstr("CPU memory")));
  EXPECT_EQ(StateOf(*session), before);
}

TEST_P(ContractTest, GivesTheSameBitsOnAnyNumberOfThreads) {
  const int before = at::get_num_threads();
  // At least eight blocks, and no whole number of words.
  const std::vector<int64_t> shape = {211, 9941};
  static const at::Tensor weight = Random(shape, 6);  // takes longer than the answers
  std::vector<std::string> answers;
  for (int threads : {1, 2, 8}) {
    at::set_num_threads(threads);
    auto session = Bind(shape);
    EXPECT_THAT(session->UpdateEpoch(2), IsOk());
    GiveStatistics(*session, 0);
    if (pruner()) {
      answers.push_back(BytesOf(session->CalcMask(0, weight)->mask.bits()));
    } else {
      answers.push_back(Describe(*session->QuantizeWeight(0, weight, QuantizeReply::kCodes)));
    }
  }
  at::set_num_threads(before);
  EXPECT_TRUE(answers[0] == answers[1]);
  EXPECT_TRUE(answers[0] == answers[2]);
}

TEST_P(ContractTest, RefusesTheCallsOfTheOtherKind) {
  auto session = Bind({6});
  const auto wrong_kind =
      Fails(absl::StatusCode::kFailedPrecondition, HasSubstr(GetParam().algorithm));
  if (pruner()) {
    EXPECT_THAT(session->QuantizeWeight(0, Random({6}, 1), QuantizeReply::kCodes), wrong_kind);
    EXPECT_THAT(session->QuantizeRange(0, Range{{0}, {1}}), wrong_kind);
  } else {
    EXPECT_THAT(session->CalcMask(0, Random({6}, 1)), wrong_kind);
  }
}

// Exports alone look at it.
TEST_P(ContractTest, AQuantizerKeepsAMaskAndAnswersAsBefore) {
  if (pruner()) return;  // its mask is its answer
  const at::Tensor weight = Random({6}, 1);
  auto session = Bind({6});
  auto twin = Bind({6});
  ASSERT_THAT(session->SetMask(0, MaskOf("011011")), IsOk());
  EXPECT_TRUE(session->IsStale(0));
  EXPECT_EQ(Ask(*session, weight).value(), Ask(*twin, weight).value());
  auto fresh = Bind({6});
  ASSERT_THAT(fresh->Load(session->SaveGlobal(), {session->SaveLayer(0)}), IsOk());
  EXPECT_EQ(StateOf(*fresh), StateOf(*session));
  EXPECT_EQ(Bits(*fresh->state(0).mask), "011011");
}

TEST_P(ContractTest, ARangeIsAsGoodAsAWeightWhereItIsAccepted) {
  auto session = Bind({4, 3});
  if (pruner()) {
    EXPECT_THAT(session->QuantizeRange(0, Range{{0}, {1}}),
                Fails(absl::StatusCode::kFailedPrecondition, HasSubstr("a pruner")));
    return;
  }
  const auto& quantizer =
      static_cast<const Quantizer&>(*session->plan().layers[0].planned->compressor);
  if (!quantizer.traits().accepts_range) {
    EXPECT_THAT(session->QuantizeRange(0, Range{{0}, {1}}), IsInvalid(HasSubstr("needs weights")));
    return;
  }
  const at::Tensor weight = Random({4, 3}, 8);
  Range range;
  for (int64_t c = 0; c < quantizer.channels(session->layer(0)); ++c) {
    const auto axis = quantizer.channel_axis(session->layer(0));
    const int64_t group = quantizer.traits().group_size;
    const at::Tensor part = group > 0 ? weight.reshape({-1, group}).select(0, c)
                            : axis    ? weight.select(*axis, c)
                                      : weight;
    range.minimum.push_back(part.min().item<float>());
    range.maximum.push_back(part.max().item<float>());
  }
  auto twin = Bind({4, 3});
  auto by_range = session->QuantizeRange(0, range);
  auto by_weight = twin->QuantizeWeight(0, weight, QuantizeReply::kParameters);
  ASSERT_THAT(by_range, IsOk());
  EXPECT_EQ(Describe(*by_range), Describe(*by_weight));
  EXPECT_EQ(StateOf(*session), StateOf(*twin));
}

// The choices that make a pruner: all combinations of them are tried. Presets that differ in their
// score alone share what the schedules are tried with.
const std::vector<std::string> kDimensions = {"structure", "score",    "scope",
                                              "normalize", "schedule", "schedule_unit"};

// Options that some choices require, or whose default is for longer schedules.
const json kGiven = {{"sparsity", 0.6}, {"final_sparsity", 0.7}, {"end_epoch", 6},
                     {"end_step", 8},   {"frequency", 1},        {"rounds", 3}};

bool Exists(const OptionSpec& option, const json& rule) {
  for (const auto& [name, choices] : option.only_with) {
    if (!rule.contains(name) || !std::count(choices.begin(), choices.end(), rule[name])) {
      return false;
    }
  }
  return true;
}

// Adds the rules that follow from `rule`, which has what is chosen of the options before `next`.
void AddCombinations(const AlgorithmInfo& info, size_t next, const json& rule, bool schedules,
                     const std::string& name, std::vector<Case>& cases) {
  if (next == info.options.size()) {
    cases.push_back({name, info.name, rule});
    return;
  }
  const OptionSpec& option = info.options[next];
  const bool dimension = std::count(kDimensions.begin(), kDimensions.end(), option.name) > 0;
  if (!Exists(option, rule) || (!dimension && !kGiven.contains(option.name))) {
    AddCombinations(info, next + 1, rule, schedules, name, cases);
    return;
  }
  json choices = dimension ? json(option.choices) : json::array({kGiven.at(option.name)});
  if (option.name == "schedule" && !schedules) choices.erase(choices.begin() + 1, choices.end());
  for (const json& choice : choices) {
    json chosen = rule;
    chosen[option.name] = choice;
    const std::string suffix = dimension ? "_" + choice.get<std::string>() : "";
    AddCombinations(info, next + 1, chosen, schedules, name + suffix, cases);
  }
}

// Of what the preset leaves open.
std::string DimensionsOf(const AlgorithmInfo& info) {
  std::string text;
  for (const OptionSpec& option : info.options) {
    if (std::count(kDimensions.begin(), kDimensions.end(), option.name) == 0) continue;
    absl::StrAppend(&text, option.name, ": ", absl::StrJoin(option.choices, " "), "\n");
  }
  return text;
}

bool IsPreset(const AlgorithmInfo& info) {
  return std::any_of(info.options.begin(), info.options.end(), [](const OptionSpec& option) {
    return std::count(kDimensions.begin(), kDimensions.end(), option.name) > 0;
  });
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  std::set<std::string> tried;
  for (const AlgorithmInfo* info : AllAlgorithms().List()) {
    if (info->name == "n_m") {  // of groups that small layers have, too
      cases.push_back({"n_m", "n_m", {{"n", 1}, {"m", 2}}});
      continue;
    }
    cases.push_back({info->name, info->name, info->example});
    if (!IsPreset(*info)) continue;
    const bool schedules = tried.insert(DimensionsOf(*info)).second;
    AddCombinations(*info, 0, json::object(), schedules, info->name, cases);
  }
  const json groups = {{"quant_scheme", "per_channel_affine"}, {"group_size", 1}};
  cases.push_back({"qat_in_groups", "qat", groups});
  const json activations = {{"quant_types", {"weight", "output", "input"}}};
  cases.push_back({"qat_with_activations", "qat", activations});
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Algorithms, ContractTest, testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace nni_compression::compression
