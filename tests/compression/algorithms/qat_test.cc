#include <ATen/ops/fake_quantize_per_channel_affine.h>
#include <ATen/ops/fake_quantize_per_tensor_affine.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

QuantizationParameters ParametersOf(const json& rule, const at::Tensor& weight) {
  auto session = BindOne("qat", rule, weight.sizes().vec());
  auto result = session->QuantizeWeight(0, weight, QuantizeReply::kParameters);
  EXPECT_THAT(result, IsOk());
  EXPECT_EQ(result->data.size(), 0);
  return *result->parameters;
}

// LibTorch's values with the parameters answered.
at::Tensor FakeQuantize(const at::Tensor& weight, const QuantizationParameters& p) {
  if (!p.channel_axis) {
    return at::fake_quantize_per_tensor_affine(weight, p.scale[0], p.zero_point[0], p.code_min,
                                               p.code_max);
  }
  std::vector<double> zero_points(p.zero_point.begin(), p.zero_point.end());
  const at::Tensor scale = Values(std::vector<double>(p.scale.begin(), p.scale.end()));
  return at::fake_quantize_per_channel_affine(weight, scale, Values(zero_points).to(at::kInt),
                                              *p.channel_axis, p.code_min, p.code_max);
}

class QatSchemeTest : public testing::TestWithParam<const char*> {};

TEST_P(QatSchemeTest, GivesTheValuesOfLibTorchsFakeQuantizeBitForBit) {
  const std::vector<std::vector<int64_t>> shapes = {{1},       {7},          {5, 3},
                                                    {4, 3, 2}, {2, 3, 3, 3}, {64, 33}};
  int seed = 0;
  for (int bits = 2; bits <= 16; ++bits) {
    for (const auto& shape : shapes) {
      const int axis = seed % static_cast<int>(shape.size());
      ++seed;
      const at::Tensor weight =
          Random(shape, seed, DataType::kFloat32, std::pow(10.0, seed % 9 - 4));
      auto session = BindOne("qat", {{"quant_scheme", GetParam()}, {"quant_bits", bits}}, shape,
                             DataType::kFloat32, axis);
      auto result = session->QuantizeWeight(0, weight, QuantizeReply::kValues);
      ASSERT_THAT(result, IsOk());
      EXPECT_EQ(BytesOf(result->data),
                BytesOf(FakeQuantize(weight, *result->parameters).contiguous()))
          << bits << " bits, seed " << seed;
    }
  }
}

TEST_P(QatSchemeTest, CodesStandForTheValues) {
  for (int bits : {2, 8, 9, 16}) {
    const at::Tensor weight = Random({6, 5}, bits);
    auto session = BindOne("qat", {{"quant_scheme", GetParam()}, {"quant_bits", bits}}, {6, 5});
    auto codes = session->QuantizeWeight(0, weight, QuantizeReply::kCodes);
    auto values = session->QuantizeWeight(0, weight, QuantizeReply::kValues);
    ASSERT_TRUE(*codes->parameters == *values->parameters);
    const QuantizationParameters& p = *codes->parameters;
    const bool is_signed = p.code_min < 0;
    EXPECT_EQ(codes->dtype, bits <= 8 ? (is_signed ? DataType::kInt8 : DataType::kUInt8)
                                      : (is_signed ? DataType::kInt16 : DataType::kUInt16));
    EXPECT_EQ(values->dtype, DataType::kFloat32);
    for (int i = 0; i < 30; ++i) {
      const uint8_t* bytes = codes->data.data();
      const int code = codes->dtype == DataType::kInt8 ? reinterpret_cast<const int8_t*>(bytes)[i]
                       : codes->dtype == DataType::kUInt8 ? bytes[i]
                       : codes->dtype == DataType::kInt16
                           ? reinterpret_cast<const int16_t*>(bytes)[i]
                           : reinterpret_cast<const uint16_t*>(bytes)[i];
      EXPECT_GE(code, p.code_min);
      EXPECT_LE(code, p.code_max);
      const size_t c = p.channel_axis ? i / 5 : 0;
      EXPECT_EQ(reinterpret_cast<const float*>(values->data.data())[i],
                static_cast<float>(code - p.zero_point[c]) * p.scale[c]);
    }
  }
}

TEST_P(QatSchemeTest, ARangeGivesTheParametersOfItsWeightBitForBit) {
  const at::Tensor weight = Random({4, 9}, 12);
  const bool per_channel = std::string(GetParam()).find("channel") != std::string::npos;
  Range range;
  for (int64_t c = 0; c < (per_channel ? 4 : 1); ++c) {
    const at::Tensor part = per_channel ? weight.select(0, c) : weight;
    range.minimum.push_back(part.min().item<float>());
    range.maximum.push_back(part.max().item<float>());
  }
  auto session = BindOne("qat", {{"quant_scheme", GetParam()}}, {4, 9});
  auto by_range = session->QuantizeRange(0, range);
  auto by_weight = session->QuantizeWeight(0, weight, QuantizeReply::kParameters);
  ASSERT_THAT(by_range, IsOk());
  EXPECT_TRUE(*by_range->parameters == *by_weight->parameters);
}

TEST_P(QatSchemeTest, WidensHalfTypesAndRoundsTheValuesOnce) {
  for (DataType dtype : {DataType::kFloat16, DataType::kBFloat16}) {
    const at::Tensor weight = Random({3, 7}, 4, dtype);
    auto session = BindOne("qat", {{"quant_scheme", GetParam()}}, {3, 7}, dtype);
    auto result = session->QuantizeWeight(0, weight, QuantizeReply::kValues);
    ASSERT_THAT(result, IsOk());
    EXPECT_EQ(result->dtype, dtype);
    const at::Tensor expected = FakeQuantize(weight.to(at::kFloat), *result->parameters);
    EXPECT_EQ(BytesOf(result->data), BytesOf(expected.to(weight.scalar_type()).contiguous()));
  }
}

TEST_P(QatSchemeTest, ConstantZerosHaveScaleOneAndCodesAtTheZeroPoint) {
  const at::Tensor zeros = Values({0, -0.0, 0, 0}, DataType::kFloat32, {2, 2});
  auto session = BindOne("qat", {{"quant_scheme", GetParam()}}, {2, 2});
  auto result = session->QuantizeWeight(0, zeros, QuantizeReply::kCodes);
  ASSERT_THAT(result, IsOk());
  for (float scale : result->parameters->scale) EXPECT_EQ(scale, 1.0f);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(result->data.data()[i], 0);
}

INSTANTIATE_TEST_SUITE_P(Schemes, QatSchemeTest,
                         testing::Values("per_tensor_affine", "per_tensor_symmetric",
                                         "per_channel_affine", "per_channel_symmetric"),
                         [](const auto& info) { return std::string(info.param); });

TEST(QatQuantizerTest, ComputesTheExamples) {
  const auto positive = ParametersOf(json::object(), Values({1, 2, 3, 5}));
  EXPECT_THAT(positive.scale, ElementsAre(5.0f / 255.0f));
  EXPECT_THAT(positive.zero_point, ElementsAre(0));
  const auto mixed = ParametersOf(json::object(), Values({-1, 2, 3, 5}));
  EXPECT_THAT(mixed.scale, ElementsAre(6.0f / 255.0f));
  EXPECT_THAT(mixed.zero_point, ElementsAre(42));
}

TEST(QatQuantizerTest, HasOneScalePerChannelOfTheAxis) {
  auto session =
      BindOne("qat", {{"quant_scheme", "per_channel_symmetric"}}, {2, 3}, DataType::kFloat32, 1);
  auto result = session->QuantizeWeight(
      0, Values({1, 2, 3, -4, -5, -6}, DataType::kFloat32, {2, 3}), QuantizeReply::kCodes);
  ASSERT_THAT(result, IsOk());
  EXPECT_EQ(result->parameters->channel_axis, 1);
  EXPECT_THAT(result->parameters->scale, ElementsAre(4.0f / 127.0f, 5.0f / 127.0f, 6.0f / 127.0f));
  const auto* codes = reinterpret_cast<const int8_t*>(result->data.data());
  EXPECT_THAT(std::vector<int>(codes, codes + 6), ElementsAre(32, 51, 64, -127, -127, -127));
}

// Each group of each channel on its own, by LibTorch.
TEST(QatQuantizerTest, RoundsEachGroupOfAChannelAsATensorOfItsOwn) {
  for (const char* scheme : {"affine", "symmetric"}) {
    for (DataType dtype : {DataType::kFloat32, DataType::kFloat16}) {
      for (const auto& [shape, group_size] : std::vector<std::pair<std::vector<int64_t>, int64_t>>{
               {{5, 12}, 4}, {{5, 12}, 12}, {{7, 6, 3, 2}, 9}, {{64, 4096}, 128}, {{3}, 1}}) {
        const json grouped = {{"quant_scheme", std::string("per_channel_") + scheme},
                              {"group_size", group_size}};
        const json alone = {{"quant_scheme", std::string("per_tensor_") + scheme}};
        const at::Tensor weight = Random(shape, group_size, dtype);
        auto session = BindOne("qat", grouped, shape, dtype);
        auto result = session->QuantizeWeight(0, weight, QuantizeReply::kValues);
        ASSERT_THAT(result, IsOk());
        const QuantizationParameters& p = *result->parameters;
        EXPECT_EQ(p.group_size, group_size);
        EXPECT_EQ(p.channel_axis, 0);
        const at::Tensor groups = weight.reshape({-1, group_size});
        ASSERT_EQ(static_cast<int64_t>(p.scale.size()), groups.size(0));
        ASSERT_EQ(p.zero_point.size(), p.scale.size());
        auto one = BindOne("qat", alone, {group_size}, dtype);
        std::string expected;
        for (int64_t g = 0; g < groups.size(0); ++g) {
          const at::Tensor group = groups.select(0, g).contiguous();
          const auto parameters =
              one->QuantizeWeight(0, group, QuantizeReply::kParameters)->parameters;
          ASSERT_EQ(p.scale[g], parameters->scale[0]) << g;
          ASSERT_EQ(p.zero_point[g], parameters->zero_point[0]) << g;
          const at::Tensor values = FakeQuantize(group.to(at::kFloat), *parameters);
          expected += BytesOf(values.to(weight.scalar_type()).contiguous());
        }
        EXPECT_EQ(BytesOf(result->data), expected) << scheme << " " << group_size;
      }
    }
  }
}

TEST(QatQuantizerTest, RefusesGroupsThatDoNotFit) {
  const auto bind = [](json rule, std::vector<int64_t> shape, int axis = 0) {
    Layer layer = MakeLayer("fc", std::move(shape));
    layer.channel_axis = axis;
    return TryBind(MakeBinding("qat", json::array({std::move(rule)}), {layer})).status();
  };
  json rule = {{"group_size", 5}};
  EXPECT_THAT(bind(rule, {4, 10}),
              IsInvalid(HasSubstr("config_list[0].group_size is 5; it must be 0, no groups, where "
                                  "quant_scheme is \"per_tensor_affine\"")));
  rule["quant_scheme"] = "per_channel_affine";
  EXPECT_THAT(bind(rule, {4, 10}), IsOk());
  EXPECT_THAT(bind(rule, {4, 12}),
              IsInvalid(HasSubstr("config_list[0].group_size is 5; for layer \"fc\" it must divide "
                                  "12, the weights of a channel of the shape [4, 12]")));
  EXPECT_THAT(bind(rule, {5, 4}, 1), IsInvalid(HasSubstr("its channels are dimension 1")));
  rule["group_size"] = -1;
  EXPECT_THAT(bind(rule, {4, 10}), IsInvalid(HasSubstr("group_size is -1; it must be")));
}

TEST(QatQuantizerTest, TheStateOfGroupsIsNotThatOfOthers) {
  json rule = {{"quant_scheme", "per_channel_affine"}, {"group_size", 4}};
  auto session = BindOne("qat", rule, {2, 8});
  ASSERT_THAT(session->QuantizeWeight(0, Random({2, 8}, 1), QuantizeReply::kCodes), IsOk());
  auto twin = BindOne("qat", rule, {2, 8});
  ASSERT_THAT(twin->Load(session->SaveGlobal(), {session->SaveLayer(0)}), IsOk());
  EXPECT_TRUE(*twin->state(0).parameters == *session->state(0).parameters);
  rule["group_size"] = 2;
  auto other = BindOne("qat", rule, {2, 8});
  EXPECT_THAT(other->Load(session->SaveGlobal(), {session->SaveLayer(0)}),
              Fails(absl::StatusCode::kDataLoss, HasSubstr("another configuration")));
}

TEST(QatQuantizerTest, ComputesTheScaleInDoubleWhereTheRangeOverflows) {
  const double max = std::numeric_limits<float>::max();
  const auto p = ParametersOf(json::object(), Values({-max, max}));
  EXPECT_EQ(p.scale[0], static_cast<float>(2 * max / 255));
  EXPECT_EQ(p.zero_point[0], 128);
}

TEST(QatQuantizerTest, KeepsTheScaleOfTinyWeightsAtTheSmallestNormalFloat) {
  const auto p = ParametersOf(json::object(), Values({1e-40, 0}));
  EXPECT_EQ(p.scale[0], std::numeric_limits<float>::min());
}

TEST(QatQuantizerTest, PassesWeightsUnchangedBeforeItsStartStep) {
  auto session = BindOne("qat", {{"quant_start_step", 10}}, {2});
  EXPECT_TRUE(session->plan().needs_step);
  auto before = session->QuantizeWeight(0, Values({1, 2}), QuantizeReply::kCodes);
  ASSERT_THAT(before, IsOk());
  EXPECT_FALSE(before->parameters);
  EXPECT_EQ(before->data.size(), 0);
  EXPECT_FALSE(session->IsStale(0));
  EXPECT_TRUE(session->Step(9).value());
  EXPECT_THAT(session->StaleLayers(), IsEmpty());
  EXPECT_TRUE(session->Step(10).value());
  EXPECT_THAT(session->StaleLayers(), ElementsAre(0));
  auto after = session->QuantizeWeight(0, Values({1, 2}), QuantizeReply::kCodes);
  EXPECT_TRUE(after->parameters);
  EXPECT_FALSE(session->IsStale(0));
}

TEST(QatQuantizerTest, RefusesBadWeightsBeforeItsStartStepToo) {
  auto session = BindOne("qat", {{"quant_start_step", 10}}, {2});
  EXPECT_THAT(session->QuantizeWeight(0, Values({1, std::nan("")}), QuantizeReply::kCodes),
              IsInvalid(HasSubstr("element 1 is nan")));
}

TEST(QatQuantizerTest, CountsOnlyTheWeightsEntryOfBitsPerType) {
  EXPECT_EQ(ParametersOf({{"quant_bits", {{"weight", 4}, {"output", 8}}}}, Values({1})).bits, 4);
  EXPECT_EQ(ParametersOf({{"q_bits", 5}}, Values({1})).bits, 5);
  EXPECT_THAT(
      TryBind(MakeBinding("qat", {{{"quant_bits", {{"output", 8}}}}}, {MakeLayer("a", {1})})),
      IsInvalid(HasSubstr("quant_bits is {\"output\":8}; it must have a number for "
                          "\"weight\"")));
}

const json kAllTypes = {{"quant_types", {"weight", "output", "input"}}};

Range RangeOf(float minimum, float maximum) { return {{minimum}, {maximum}}; }

TEST(QatQuantizerTest, TheFirstRangeOfOutputsBeginsTheRunningOneAndOthersMoveItByAHundredth) {
  auto session = BindOne("qat", kAllTypes, {4});
  auto first = session->ObserveActivation(0, Activation::kOutput, RangeOf(-1, 5));
  ASSERT_THAT(first, IsOk());
  EXPECT_EQ(first->parameters->scale[0], 6.0f / 255);
  EXPECT_EQ(first->parameters->zero_point[0], 42);
  auto second = session->ObserveActivation(0, Activation::kOutput, RangeOf(-3, 4));
  ASSERT_THAT(second, IsOk());
  EXPECT_EQ(second->range->minimum[0], 0.99f * -1.0f + 0.01f * -3.0f);
  EXPECT_EQ(second->range->maximum[0], 0.99f * 5.0f + 0.01f * 4.0f);
  auto asked = session->QuantizeActivation(0, Activation::kOutput);
  EXPECT_TRUE(*asked->parameters == *second->parameters) << "asking changes nothing";
}

TEST(QatQuantizerTest, OutputsAndInputsHaveScalesOfTheirOwnAndSurviveInTheState) {
  const json rule = {{"quant_types", {"output", "input"}},
                     {"quant_bits", {{"output", 8}, {"input", 4}}},
                     {"quant_scheme", "per_channel_symmetric"}};
  auto session = BindOne("qat", rule, {4, 3});
  ASSERT_THAT(session->ObserveActivation(0, Activation::kOutput, RangeOf(-127, 1)), IsOk());
  ASSERT_THAT(session->ObserveActivation(0, Activation::kInput, RangeOf(0, 14)), IsOk());
  auto fresh = BindOne("qat", rule, {4, 3});
  ASSERT_THAT(fresh->Load(session->SaveGlobal(), {session->SaveLayer(0)}), IsOk());
  auto output = fresh->QuantizeActivation(0, Activation::kOutput);
  auto input = fresh->QuantizeActivation(0, Activation::kInput);
  EXPECT_THAT(output->parameters->scale, ElementsAre(1.0f));
  EXPECT_THAT(input->parameters->scale, ElementsAre(2.0f));
  EXPECT_EQ(input->parameters->bits, 4);
  EXPECT_EQ(input->parameters->code_min, -7);
  EXPECT_FALSE(output->parameters->channel_axis.has_value()) << "channels are the weights' alone";
  auto weight = fresh->QuantizeWeight(0, Random({4, 3}, 1), QuantizeReply::kValues);
  ASSERT_THAT(weight, IsOk());
  EXPECT_FALSE(weight->parameters.has_value()) << "quant_types does not name weights";
  EXPECT_THAT(fresh->StaleLayers(), IsEmpty());
}

TEST(QatQuantizerTest, RangesAreTrackedBeforeTheStartStepWhileOutputsPassUnchanged) {
  json rule = kAllTypes;
  rule["quant_start_step"] = 2;
  auto session = BindOne("qat", rule, {4});
  ASSERT_THAT(session->Step(1), IsOk());
  auto early = session->ObserveActivation(0, Activation::kOutput, RangeOf(0, 255));
  EXPECT_FALSE(early->parameters.has_value());
  EXPECT_EQ(early->range->maximum[0], 255.0f);
  ASSERT_THAT(session->Step(2), IsOk());
  auto late = session->ObserveActivation(0, Activation::kOutput, RangeOf(0, 255));
  EXPECT_EQ(late->parameters->bits, 8);
  EXPECT_FLOAT_EQ(late->parameters->scale[0], 1.0f);
}

TEST(QatQuantizerTest, OutputsOfAConstantZeroHaveScaleOne) {
  auto session = BindOne("qat", kAllTypes, {4});
  auto zeros = session->ObserveActivation(0, Activation::kOutput, RangeOf(0, 0));
  EXPECT_THAT(zeros->parameters->scale, ElementsAre(1.0f));
  EXPECT_THAT(zeros->parameters->zero_point, ElementsAre(0));
}

TEST(QatQuantizerTest, RefusesRangesOfOutputsThatAreNoneOrThatNobodyAskedForAndStaysAsItWas) {
  auto session = BindOne("qat", kAllTypes, {4});
  const std::string before = StateOf(*session);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const Range& bad : {RangeOf(2, 1), RangeOf(nan, 1), RangeOf(0, 1 / 0.0f), Range{}}) {
    EXPECT_THAT(session->ObserveActivation(0, Activation::kInput, bad),
                IsInvalid(HasSubstr("range of layer \"layer\"")));
  }
  EXPECT_EQ(StateOf(*session), before);
  auto weights_only = BindOne("qat", json::object(), {4});
  EXPECT_THAT(weights_only->ObserveActivation(0, Activation::kInput, RangeOf(0, 1)),
              IsInvalid(HasSubstr("the inputs of layer \"layer\" are not quantized: "
                                  "config_list[0].quant_types")));
}

TEST(QatQuantizerTest, BitsPerTypeMustNameEveryTypeThatIsQuantized) {
  json rule = kAllTypes;
  rule["quant_bits"] = {{"weight", 8}, {"output", 8}};
  EXPECT_THAT(TryBind(MakeBinding("qat", {rule}, {MakeLayer("a", {1})})),
              IsInvalid(HasSubstr("it must have a number for \"input\"")));
}

// The parameters of an output that ranged from -1 to 3.
QuantizationParameters OutputParameters(const json& rule) {
  auto session = BindOne("qat", rule, {4, 3});
  return *session->ObserveActivation(0, Activation::kOutput, RangeOf(-1, 3))->parameters;
}

absl::Status BindStatus(const json& rule) {
  return TryBind(MakeBinding("qat", {rule}, {MakeLayer("a", {4, 3})})).status();
}

TEST(QatQuantizerTest, ASchemePerTypeIsThatSchemeForEachType) {
  const at::Tensor weight = Random({4, 3}, 9);
  for (const char* weights : {"per_tensor_affine", "per_tensor_symmetric", "per_channel_affine",
                              "per_channel_symmetric"}) {
    for (const char* outputs : {"per_tensor_affine", "per_tensor_symmetric"}) {
      json rule = kAllTypes;
      rule["quant_scheme"] = {
          {"weight", weights}, {"output", outputs}, {"input", "per_tensor_affine"}};
      EXPECT_TRUE(ParametersOf(rule, weight) == ParametersOf({{"quant_scheme", weights}}, weight));
      json alike = kAllTypes;
      alike["quant_scheme"] = outputs;
      EXPECT_TRUE(OutputParameters(rule) == OutputParameters(alike)) << weights << outputs;
      auto session = BindOne("qat", rule, {4, 3});
      auto input = session->ObserveActivation(0, Activation::kInput, RangeOf(-1, 3));
      EXPECT_EQ(input->parameters->code_min, 0);
      EXPECT_EQ(input->parameters->scale[0], 4.0f / 255);
    }
  }
}

TEST(QatQuantizerTest, OneSchemeForAllTypesSaysOfActivationsWhetherTheyHaveAZeroPoint) {
  json rule = kAllTypes;
  rule["quant_scheme"] = "per_channel_symmetric";
  EXPECT_EQ(OutputParameters(rule).code_min, -127);
  rule["quant_scheme"] = "per_channel_affine";
  EXPECT_EQ(OutputParameters(rule).code_min, 0);
  EXPECT_EQ(OutputParameters(rule).scale.size(), 1u);
}

TEST(QatQuantizerTest, SchemesPerTypeMustNameEveryTypeThatIsQuantizedAndNoChannelsOfActivations) {
  json rule = kAllTypes;
  rule["quant_scheme"] = {{"weight", "per_channel_affine"}, {"output", "per_tensor_affine"}};
  EXPECT_THAT(BindStatus(rule), IsInvalid(HasSubstr("it must have a scheme for \"input\", which "
                                                    "quant_types names")));
  rule["quant_scheme"]["input"] = "per_channel_affine";
  EXPECT_THAT(BindStatus(rule),
              IsInvalid(HasSubstr("config_list[0].quant_scheme.input is \"per_channel_affine\"; it "
                                  "must be one of per_tensor_affine, per_tensor_symmetric")));
  EXPECT_THAT(BindStatus({{"quant_scheme", {{"weight", "per_chanel_affine"}}}}),
              IsInvalid(HasSubstr("did you mean `per_channel_affine`?")));
  EXPECT_THAT(BindStatus({{"quant_scheme", {{"weight", "per_tensor_affine"}}}, {"group_size", 3}}),
              IsInvalid(HasSubstr("group_size is 3; it must be 0, no groups, where quant_scheme is "
                                  "\"per_tensor_affine\"")));
  EXPECT_THAT(BindStatus({{"quant_scheme", {{"weight", "per_channel_affine"}}}, {"group_size", 3}}),
              IsOk());
}

TEST(QatQuantizerTest, ATargetGivesWhatItsKernelsTake) {
  const at::Tensor weight = Random({4, 3}, 9);
  for (const char* target : {"onnxruntime", "openvino"}) {
    json rule = {{"target", target}};
    const bool outputs = std::string(target) == "onnxruntime";
    const json types = BindOne("qat", rule, {4, 3})->plan().rules[0]->options.json()["quant_types"];
    EXPECT_EQ(types.size(), outputs ? 3u : 2u);
    EXPECT_EQ(std::count(types.begin(), types.end(), "output"), outputs ? 1 : 0);
    rule["quant_types"] = kAllTypes.at("quant_types");
    EXPECT_TRUE(ParametersOf(rule, weight) ==
                ParametersOf({{"quant_scheme", "per_channel_symmetric"}}, weight));
    EXPECT_TRUE(OutputParameters(rule) == OutputParameters(kAllTypes));
    const auto session = BindOne("qat", rule, {4, 3});
    const json& options = session->plan().rules[0]->options.json();
    EXPECT_EQ(options.at("quant_scheme").at("weight"), "per_channel_symmetric") << target;
    EXPECT_EQ(options.at("quant_scheme").at("input"), "per_tensor_affine") << target;
  }
}

TEST(QatQuantizerTest, ATargetRefusesWhatItsKernelsDoNotTake) {
  json rule = {{"target", "onnxruntime"}, {"quant_scheme", "per_tensor_affine"}};
  EXPECT_THAT(BindStatus(rule),
              IsInvalid("config_list[0].quant_scheme is \"per_tensor_affine\" for \"weight\"; it "
                        "must be one of per_channel_symmetric, per_tensor_symmetric where target "
                        "is \"onnxruntime\""));
  rule["quant_scheme"] = {{"weight", "per_tensor_symmetric"}};
  EXPECT_THAT(BindStatus(rule), IsOk());
  rule["quant_scheme"] = "per_tensor_symmetric";
  EXPECT_THAT(BindStatus(rule), IsOk());
  rule["quant_bits"] = {{"weight", 7}, {"output", 8}, {"input", 9}};
  EXPECT_THAT(BindStatus(rule),
              IsInvalid(HasSubstr("quant_bits is 9 for \"input\"; it must be at most 8 where "
                                  "target is \"onnxruntime\"")));
  EXPECT_THAT(BindStatus({{"target", "openvino"}, {"group_size", 3}}),
              IsInvalid(HasSubstr("group_size is 3; it must be 0, no groups, where target is "
                                  "\"openvino\"")));
  EXPECT_THAT(BindStatus({{"target", "openvin"}}),
              IsInvalid(HasSubstr("it must be one of any, onnxruntime, openvino; did you mean "
                                  "`openvino`?")));
}

TEST(QatQuantizerTest, RefusesBitsOutOfRange) {
  for (int bits : {0, 1, 17, 33, -8}) {
    EXPECT_THAT(
        TryBind(MakeBinding("qat", {{{"quant_bits", bits}}}, {MakeLayer("a", {1})})),
        IsInvalid(HasSubstr("quant_bits is " + std::to_string(bits) + "; it must be in [2, 16]")));
  }
}

}  // namespace
}  // namespace nni_compression::compression
