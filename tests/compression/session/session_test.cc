#include "compression/session/session.h"

#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// conv1 and conv2 pruned to one half, conv3 excluded, bn without a rule.
std::unique_ptr<Session> BindNetwork() {
  const json config_list = {{{"sparsity", 0.5}, {"op_types", {"default"}}},
                            {{"exclude", true}, {"op_names", {"conv3"}}}};
  Layer tied = MakeLayer("conv2", {4}, DataType::kFloat32, "Conv2d");
  tied.aliases = {"head"};
  return TryBind(MakeBinding("level", config_list,
                             {MakeLayer("conv1", {4}, DataType::kFloat32, "Conv2d"), tied,
                              MakeLayer("conv3", {4}, DataType::kFloat32, "Conv2d"),
                              MakeLayer("bn", {4}, DataType::kFloat32, "BatchNorm2d")}))
      .value();
}

TEST(SessionTest, StaleLayersAreTheCompressedOnesThatWereNotAnswered) {
  auto session = BindNetwork();
  EXPECT_THAT(session->StaleLayers(), ElementsAre(0, 1));
  ASSERT_THAT(session->CalcMask(0, Values({1, 2, 3, 4})), IsOk());
  EXPECT_THAT(session->StaleLayers(), ElementsAre(1));
  ASSERT_THAT(session->SetMask(1, MaskOf("0011")), IsOk());
  EXPECT_THAT(session->StaleLayers(), IsEmpty());
}

TEST(SessionTest, LooksForSimilarNamesOfFewUnknownOnesInARow) {
  const auto session = BindNetwork();
  const auto text = [&](absl::string_view name) {
    return std::string(session->FindLayer(name).status().message());
  };
  for (int time = 0; time < 2; ++time) {
    for (int i = 0; i < 10; ++i) EXPECT_THAT(text("conv9"), HasSubstr("did you mean"));
    EXPECT_EQ(text("conv9"), "the session has no layer \"conv9\"");
    EXPECT_TRUE(session->FindLayer("conv1").ok());
  }
}

TEST(SessionTest, WhatAnAlgorithmRemembersIsCountedBeforeItIsKept) {
  auto session = BindOne("qat", {{"quant_types", {"weight", "output", "input"}}}, {4});
  int64_t taken = 0;
  bool admits = false;
  ASSERT_THAT(session->CountMemory([&](int64_t bytes) {
    if (!admits) return absl::ResourceExhaustedError("no memory");
    taken += bytes;
    return absl::OkStatus();
  }),
              IsOk());
  const Range range = {{-1}, {1}};
  EXPECT_TRUE(absl::IsResourceExhausted(
      session->ObserveActivation(0, Activation::kOutput, range).status()));
  EXPECT_THAT(session->state(0).memory, IsEmpty()) << "as it was";
  admits = true;
  ASSERT_THAT(session->ObserveActivation(0, Activation::kOutput, range), IsOk());
  const int64_t once = taken;
  EXPECT_GT(once, 0);
  ASSERT_THAT(session->ObserveActivation(0, Activation::kOutput, range), IsOk());
  EXPECT_EQ(taken, once) << "it takes the place of the first";
  ASSERT_THAT(session->ObserveActivation(0, Activation::kInput, range), IsOk());
  EXPECT_GT(taken, once);
  // What is loaded counts, too.
  auto other = BindOne("qat", {{"quant_types", {"weight", "output", "input"}}}, {4});
  ASSERT_THAT(other->Load(session->SaveGlobal(), {session->SaveLayer(0)}), IsOk());
  int64_t loaded = 0;
  ASSERT_THAT(other->CountMemory([&](int64_t bytes) {
    loaded += bytes;
    return absl::OkStatus();
  }),
              IsOk());
  EXPECT_EQ(loaded, taken);
}

TEST(SessionTest, FindsLayersByNameAndAlias) {
  auto session = BindNetwork();
  EXPECT_EQ(session->FindLayer("conv1").value(), 0);
  EXPECT_EQ(session->FindLayer("head").value(), 1);
  EXPECT_THAT(session->FindLayer("conv"),
              Fails(absl::StatusCode::kNotFound,
                    AllOf(HasSubstr("has no layer \"conv\""), HasSubstr("did you mean `conv1`?"))));
  EXPECT_THAT(session->FindLayer("lstm"), Fails(absl::StatusCode::kNotFound, HasSubstr("lstm")));
}

TEST(SessionTest, SaysWhyALayerIsNotCompressed) {
  auto session = BindNetwork();
  EXPECT_THAT(session->CalcMask(2, Values({1, 2, 3, 4})),
              IsInvalid("layer \"conv3\" is not compressed: config_list[1] excludes it"));
  EXPECT_THAT(session->CalcMask(3, Values({1, 2, 3, 4})),
              IsInvalid("layer \"bn\" is not compressed: no rule matches it"));
  EXPECT_THAT(session->SetMask(3, MaskOf("0011")), IsInvalid(HasSubstr("not compressed")));
}

TEST(SessionTest, RefusesAMaskOfAnotherSize) {
  auto session = BindNetwork();
  EXPECT_THAT(session->SetMask(0, MaskOf("001")),
              IsInvalid("mask of layer \"conv1\" has 3 elements; it must have the weight's 4"));
  EXPECT_FALSE(session->state(0).answered);
}

TEST(SessionTest, AMaskThatTheTrainerSetsIsAnsweredAndReplacesWhatWasThere) {
  auto session = BindNetwork();
  ASSERT_THAT(session->CalcMask(0, Values({1, 2, 3, 4})), IsOk());
  auto answer = session->SetMask(0, MaskOf("1000"));
  ASSERT_THAT(answer, IsOk());
  EXPECT_EQ(Bits(answer->mask), "1000");
  EXPECT_EQ(Bits(session->CalcMask(0, Values({1, 2, 3, 4}))->mask), "1000");
}

TEST(SessionTest, CountersAreAbsoluteAndNotNegative) {
  auto session = BindNetwork();
  EXPECT_THAT(session->UpdateEpoch(5), IsOk());
  EXPECT_THAT(session->UpdateEpoch(5), IsOk());
  EXPECT_EQ(session->clock().epoch, 5);
  EXPECT_THAT(session->UpdateEpoch(2), IsOk());
  EXPECT_EQ(session->clock().epoch, 2);
  for (const int64_t bad : {int64_t{-1}, kMaxCounter + 1, std::numeric_limits<int64_t>::max()}) {
    const std::string range = absl::StrCat(" is ", bad, "; it must be in [0, 9007199254740992]");
    EXPECT_THAT(session->UpdateEpoch(bad), IsInvalid("epoch" + range));
    EXPECT_THAT(session->Step(bad), IsInvalid("step" + range));
  }
  EXPECT_EQ(session->clock().epoch, 2);
}

TEST(SessionTest, AStepCountsOnceAndOnlyWhenItIsAboveTheLast) {
  auto session = BindNetwork();
  EXPECT_TRUE(session->Step(0).value());
  EXPECT_FALSE(session->Step(0).value());
  EXPECT_TRUE(session->Step(7).value());
  EXPECT_FALSE(session->Step(7).value());
  EXPECT_FALSE(session->Step(3).value());
  EXPECT_EQ(session->clock().step, 7);
}

TEST(SessionTest, ResumesWhereTrainingDoes) {
  Binding binding = MakeBinding("level", {{{"sparsity", 0.5}}}, {MakeLayer("a", {4})});
  binding.clock = {3, 100};
  auto session = TryBind(binding).value();
  EXPECT_EQ(session->clock().epoch, 3);
  EXPECT_FALSE(session->Step(99).value());
  EXPECT_TRUE(session->Step(100).value());
  binding.clock = {-3, 0};
  EXPECT_THAT(TryBind(binding), IsInvalid("epoch is -3; it must be at least 0"));
  binding.clock = {0, -1};
  EXPECT_THAT(TryBind(binding), IsInvalid("step is -1; it must be at least 0"));
}

TEST(SessionTest, AStepThatWasTakenBeforeTheBindingIsNotTakenAgain) {
  Binding binding = MakeBinding("level", {{{"sparsity", 0.5}}}, {MakeLayer("a", {4})});
  binding.clock = {3, 100};
  binding.step_applied = true;
  auto session = TryBind(binding).value();
  EXPECT_FALSE(session->Step(100).value());
  EXPECT_TRUE(session->Step(101).value());
}

TEST(SessionTest, NumbersOfALayerThatIsNotCompressedAreRefused) {
  auto session = BindNetwork();
  EXPECT_THAT(session->Remember(2, {}), IsInvalid(HasSubstr("not compressed")));
  EXPECT_THAT(session->RememberedOf(2), IsEmpty());
}

TEST(SessionTest, CountsTheMemoryOfMasks) {
  auto session = BindOne("level", {{"sparsity", 0.5}}, {80000});
  const int64_t before = session->StateBytes();
  ASSERT_THAT(session->CalcMask(0, Random({80000}, 1)), IsOk());
  EXPECT_GE(session->StateBytes(), before + 10000);
  EXPECT_LE(session->StateBytes(), before + 11000);
}

TEST(SessionTest, RefusesRangesThatAreNone) {
  auto tensor = BindOne("qat", json::object(), {2, 3});
  const float nan = std::nanf("");
  EXPECT_THAT(tensor->QuantizeRange(0, Range{{2}, {1}}),
              IsInvalid(AllOf(HasSubstr("\"layer\""), HasSubstr("[2, 1]"))));
  EXPECT_THAT(tensor->QuantizeRange(0, Range{{nan}, {1}}), IsInvalid(HasSubstr("[nan, 1]")));
  EXPECT_THAT(tensor->QuantizeRange(0, Range{{0}, {INFINITY}}), IsInvalid(HasSubstr("[0, inf]")));
  EXPECT_THAT(tensor->QuantizeRange(0, Range{{0, 0}, {1, 1}}),
              IsInvalid(HasSubstr("has 2 minima and 2 maxima; it must have 1 of each")));
  EXPECT_THAT(tensor->QuantizeRange(0, Range{}), IsInvalid(HasSubstr("0 minima")));
  EXPECT_FALSE(tensor->state(0).answered);

  auto channels = BindOne("qat", {{"quant_scheme", "per_channel_affine"}}, {2, 3});
  EXPECT_THAT(channels->QuantizeRange(0, Range{{0, 0}, {1, 1}}), IsOk());
  EXPECT_THAT(channels->QuantizeRange(0, Range{{0}, {1}}), IsInvalid(HasSubstr("2 of each")));
}

TEST(SessionTest, AnExceptionOfAnAlgorithmIsAStatusAndChangesNothing) {
  class Throwing : public Quantizer {
   public:
    Throwing() { traits_.bits = 8; }

    absl::StatusOr<QuantizedWeight> QuantizeWeight(const Layer&, const Weight& weight,
                                                   QuantizeReply, Clock,
                                                   LayerState& state) const override {
      state.memory["half-done"] = {1};
      weight.values.view({-5, 77});  // LibTorch throws
      return QuantizedWeight();
    }
  };
  AlgorithmInfo info;
  info.name = "throwing";
  info.kind = AlgorithmKind::kQuantizer;
  info.create = [](const Options&) -> absl::StatusOr<std::unique_ptr<Compressor>> {
    return std::make_unique<Throwing>();
  };
  Registry registry;
  ASSERT_THAT(registry.Add(info), IsOk());
  auto session =
      Session::Bind(registry, MakeBinding("throwing", {json::object()}, {MakeLayer("a", {4})}));
  ASSERT_THAT(session, IsOk());
  const std::string before = StateOf(**session);
  EXPECT_THAT((*session)->QuantizeWeight(0, Values({1, 2, 3, 4}), QuantizeReply::kCodes),
              Fails(absl::StatusCode::kInternal, testing::_));
  EXPECT_EQ(StateOf(**session), before);
  EXPECT_THAT((*session)->QuantizeRange(0, Range{{0}, {1}}),
              IsInvalid("the algorithm throwing needs weights; a range is not enough"));
}

}  // namespace
}  // namespace nni_compression::compression
