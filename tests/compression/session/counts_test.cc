// Thresholds from counts, in place of masks from weights.
#include <algorithm>
#include <cmath>

#include "compression/exporters/exporter.h"
#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

const ThresholdAnswer& ThresholdOf(const CountsAnswer& answer) {
  return std::get<ThresholdAnswer>(answer);
}

// A trainer that counts: its weights and masks, and what it has counted so far.
struct Trainer {
  std::vector<at::Tensor> weights;
  std::vector<std::string> masks = std::vector<std::string>(weights.size());

  // Counts until all is decided, and makes the masks. The layers are those of one rule.
  absl::Status Ask(Session& session, const std::vector<int>& layers) {
    std::vector<LayerCounts> counts;
    for (const int i : layers) counts.push_back({i, {CountRound(weights[i], masks[i], {})}});
    const int width = static_cast<int>(weights[layers[0]].element_size()) * 8;
    while (true) {
      auto answers = session.CalcThresholds(counts);
      if (!answers.ok()) return answers.status();
      if (ThresholdOf((*answers)[0]).threshold.known_bits == width) {
        for (size_t k = 0; k < layers.size(); ++k) {
          const int i = layers[k];
          masks[i] = MaskFrom(weights[i], masks[i], ThresholdOf((*answers)[k]).threshold);
        }
        return absl::OkStatus();
      }
      for (size_t k = 0; k < layers.size(); ++k) {
        const int i = layers[k];
        counts[k].rounds.push_back(
            CountRound(weights[i], masks[i], ThresholdOf((*answers)[k]).threshold));
      }
    }
  }
};

std::unique_ptr<Session> BindTwo(const std::string& algorithm, const json& rule, DataType dtype,
                                 int64_t n = 300) {
  return TryBind(MakeBinding(algorithm, json::array({rule}),
                             {MakeLayer("a", {n}, dtype), MakeLayer("b", {n + 7}, dtype)}))
      .value();
}

// With masks that grow, weights that change, and ties.
TEST(CountsTest, MasksAreThoseThatWeightsGet) {
  struct Case {
    std::string algorithm;
    json rule;
  };
  const std::vector<Case> cases = {
      {"level", {{"sparsity", 0.37}}},
      {"agp", {{"final_sparsity", 0.9}, {"end_epoch", 4}}},
      {"level", {{"final_sparsity", 0.8}, {"schedule", "linear"}, {"end_epoch", 3}}},
      {"global_magnitude", {{"sparsity", 0.6}, {"max_sparsity", 0.7}, {"min_sparsity", 0.5}}},
      {"agp", {{"final_sparsity", 0.9}, {"end_epoch", 4}, {"scope", "global"}}},
      {"lottery_ticket", {{"sparsity", 0.8}, {"rounds", 3}}},
  };
  for (const Case& c : cases) {
    for (const DataType dtype :
         {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16, DataType::kFloat64}) {
      auto by_weights = BindTwo(c.algorithm, c.rule, dtype);
      auto by_counts = BindTwo(c.algorithm, c.rule, dtype);
      const at::Tensor with_ties = Random({307}, 2, DataType::kFloat32, 16).round();
      Trainer trainer{{Random({300}, 1, dtype), with_ties.to(ToScalarType(dtype).value())}};
      for (int64_t epoch = 0; epoch < 5; ++epoch) {
        ASSERT_THAT(by_weights->UpdateEpoch(epoch), IsOk());
        ASSERT_THAT(by_counts->UpdateEpoch(epoch), IsOk());
        const std::vector<int> stale = by_weights->StaleLayers();
        EXPECT_EQ(by_counts->StaleLayers(), stale);
        if (!stale.empty() && by_counts->IsJoint(0)) {
          ASSERT_THAT(by_weights->CalcMasks({{0, trainer.weights[0]}, {1, trainer.weights[1]}}),
                      IsOk());
          ASSERT_THAT(trainer.Ask(*by_counts, {0, 1}), IsOk());
        } else {
          for (const int i : stale) {
            ASSERT_THAT(by_weights->CalcMask(i, trainer.weights[i]), IsOk());
            ASSERT_THAT(trainer.Ask(*by_counts, {i}), IsOk());
          }
        }
        for (int i = 0; i < 2; ++i) {
          EXPECT_EQ(trainer.masks[i], Bits(*by_weights->state(i).mask))
              << c.algorithm << " " << c.rule << " " << DataTypeName(dtype) << " epoch " << epoch;
          EXPECT_EQ(by_counts->state(i).pruned(), by_weights->state(i).pruned());
          EXPECT_FALSE(by_counts->state(i).mask.has_value());
        }
        for (at::Tensor& weight : trainer.weights) weight = weight.flip(0);
        for (std::string& mask : trainer.masks) std::reverse(mask.begin(), mask.end());
        // The session with weights has its masks in the new order, too.
        for (int i = 0; i < 2; ++i) {
          ASSERT_THAT(by_weights->SetMask(i, MaskOf(trainer.masks[i])), IsOk());
        }
      }
    }
  }
}

TEST(CountsTest, NothingIsDecidedBeforeAllBitsAreKnown) {
  auto session = BindOne("level", {{"sparsity", 0.5}}, {4});
  const at::Tensor weight = Values({1, 1.0001, 3, 4});
  const std::string before = StateOf(*session);
  LayerCounts counts{0, {CountRound(weight, "", {})}};
  auto answers = session->CalcThresholds({counts});
  ASSERT_THAT(answers, IsOk());
  const Threshold first = ThresholdOf((*answers)[0]).threshold;
  EXPECT_EQ(first.known_bits, 16);
  EXPECT_EQ(StateOf(*session), before);
  EXPECT_TRUE(session->TakeChanges().empty());
  EXPECT_EQ(session->MaskChecksum(0), 0u);

  // A second round for other bits is none.
  counts.rounds.push_back({first.key + 1, {}});
  answers = session->CalcThresholds({counts});
  ASSERT_THAT(answers, IsOk());
  EXPECT_EQ(ThresholdOf((*answers)[0]).threshold, first);

  counts.rounds[1] = CountRound(weight, "", first);
  answers = session->CalcThresholds({counts});
  ASSERT_THAT(answers, IsOk());
  const ThresholdAnswer& decided = ThresholdOf((*answers)[0]);
  EXPECT_EQ(decided.threshold.known_bits, 32);
  EXPECT_EQ(decided.threshold.pruned, 2);
  EXPECT_EQ(decided.target_sparsity, 0.5);
  EXPECT_EQ(MaskFrom(weight, "", decided.threshold), "0011");
  EXPECT_THAT(session->StaleLayers(), IsEmpty());
  EXPECT_THAT(session->TakeChanges().layers, ElementsAre(0));
  EXPECT_NE(session->MaskChecksum(0), 0u);
}

TEST(CountsTest, RanksGetTheSameThresholdAndOthersAreRefused) {
  auto session = BindTwo("global_magnitude", {{"sparsity", 0.5}}, DataType::kFloat32, 20);
  Trainer first{{Random({20}, 1), Random({27}, 2)}};
  Trainer second = first;
  ASSERT_THAT(first.Ask(*session, {0, 1}), IsOk());
  const std::string decided = StateOf(*session);
  // Not stale any more, so that layers may be asked for one at a time.
  ASSERT_THAT(second.Ask(*session, {1}), IsOk());
  ASSERT_THAT(second.Ask(*session, {0}), IsOk());
  EXPECT_EQ(second.masks, first.masks);

  Trainer other{{Random({20}, 3), Random({27}, 2)}};
  EXPECT_THAT(other.Ask(*session, {0}),
              Fails(absl::StatusCode::kFailedPrecondition,
                    "the mask of layer \"a\" was decided from other counts, and it is not stale: "
                    "keep the mask that they gave. Ranks that share a session must have the same "
                    "weights and masks"));
  EXPECT_EQ(StateOf(*session), decided);
}

TEST(CountsTest, ARankThatHasTheMaskOfAnotherGetsIt) {
  auto session = BindOne("level", {{"sparsity", 0.5}}, {4});
  const at::Tensor weight = Values({4, 1, 2, 3});
  ASSERT_THAT(session->CalcMask(0, weight), IsOk());
  const auto answers = session->CalcThresholds({LayerCounts{0, {CountRound(weight, "", {})}}});
  ASSERT_THAT(answers, IsOk());
  EXPECT_EQ(Bits(std::get<MaskAnswer>((*answers)[0]).mask), "1001");
}

TEST(CountsTest, WeightsNeedTheMaskThatTheTrainerHas) {
  auto session = BindOne("agp", {{"final_sparsity", 0.9}, {"end_epoch", 3}}, {10});
  Trainer trainer{{Random({10}, 1)}};
  // A mask that removes nothing is as good as none.
  ASSERT_THAT(trainer.Ask(*session, {0}), IsOk());
  ASSERT_THAT(session->UpdateEpoch(1), IsOk());
  ASSERT_THAT(session->CalcMask(0, trainer.weights[0]), IsOk());

  ASSERT_THAT(session->UpdateEpoch(2), IsOk());
  trainer.masks[0] = Bits(*session->state(0).mask);
  ASSERT_THAT(trainer.Ask(*session, {0}), IsOk());
  const std::string before = StateOf(*session);
  const auto needs_mask =
      Fails(absl::StatusCode::kFailedPrecondition,
            "the mask of layer \"layer\" is with the trainer, which has counted its weights: send "
            "the mask, or counts");
  EXPECT_THAT(session->CalcMask(0, trainer.weights[0]), needs_mask);
  ASSERT_THAT(session->UpdateEpoch(3), IsOk());
  EXPECT_THAT(session->CalcMask(0, trainer.weights[0]), needs_mask);
  ASSERT_THAT(session->UpdateEpoch(2), IsOk());
  EXPECT_EQ(StateOf(*session), before);

  const uint32_t counted = session->MaskChecksum(0);
  ASSERT_THAT(session->SetMask(0, MaskOf(trainer.masks[0])), IsOk());
  EXPECT_NE(session->MaskChecksum(0), counted);
  const auto answer = session->CalcMask(0, trainer.weights[0]);
  ASSERT_THAT(answer, IsOk());
  EXPECT_EQ(Bits(answer->mask), trainer.masks[0]);
}

TEST(CountsTest, WhatIsDecidedIsSavedAndLoaded) {
  const json rule = {{"final_sparsity", 0.9}, {"end_epoch", 3}, {"scope", "global"}};
  auto session = BindTwo("agp", rule, DataType::kFloat32, 20);
  Trainer trainer{{Random({20}, 1), Random({27}, 2)}};
  ASSERT_THAT(session->UpdateEpoch(1), IsOk());
  ASSERT_THAT(trainer.Ask(*session, {0, 1}), IsOk());

  auto loaded = BindTwo("agp", rule, DataType::kFloat32, 20);
  ASSERT_THAT(loaded->Load(session->SaveGlobal(), {session->SaveLayer(0), session->SaveLayer(1)}),
              IsOk());
  EXPECT_EQ(StateOf(*loaded), StateOf(*session));
  EXPECT_EQ(loaded->MaskChecksum(1), session->MaskChecksum(1));
  EXPECT_THAT(loaded->StaleLayers(), IsEmpty());
  for (Session* either : {session.get(), loaded.get()}) {
    ASSERT_THAT(either->UpdateEpoch(2), IsOk());
    Trainer goes_on = trainer;
    ASSERT_THAT(goes_on.Ask(*either, {0, 1}), IsOk());
  }
  EXPECT_EQ(StateOf(*loaded), StateOf(*session));
}

TEST(CountsTest, AMaskThatIsNotHereIsNotExported) {
  auto session = BindOne("level", {{"sparsity", 0.5}}, {4});
  Trainer trainer{{Values({4, 1, 2, 3})}};
  ASSERT_THAT(trainer.Ask(*session, {0}), IsOk());
  const auto plan = [&session] {
    return FindExporter("masks").value()->Plan(*session, {}, json::object(), [] { return false; });
  };
  EXPECT_THAT(plan(), Fails(absl::StatusCode::kFailedPrecondition,
                            "the mask of layer \"layer\" is with the trainer, which has counted "
                            "its weights: send it by CalcMask, with TENSOR_ROLE_MASK, first"));
  ASSERT_THAT(session->SetMask(0, MaskOf(trainer.masks[0])), IsOk());
  EXPECT_THAT(plan(), IsOk());
}

TEST(CountsTest, BadCountsAreRefusedAndNothingChanges) {
  auto session = BindTwo("global_magnitude", {{"sparsity", 0.5}}, DataType::kFloat32, 3);
  const at::Tensor a = Random({3}, 1);
  const at::Tensor b = Random({10}, 2);
  const LayerCounts of_a{0, {CountRound(a, "", {})}};
  const LayerCounts of_b{1, {CountRound(b, "", {})}};
  const std::string before = StateOf(*session);
  EXPECT_THAT(session->CalcThresholds({of_a}), IsInvalid(HasSubstr("layer \"b\" is missing")));
  EXPECT_THAT(session->CalcThresholds({of_a, of_b, of_a}), IsInvalid("layer \"a\" is given twice"));
  EXPECT_THAT(session->CalcThresholds({of_a, {1, {CountRound(a, "", {})}}}),
              IsInvalid("round 0 of layer \"b\": the counts add up to less than 10, the weights "
                        "that the layer's mask in the session keeps"));
  EXPECT_THAT(session->CalcThresholds(
                  {of_a, {1, {CountRound(Values({1, NAN, 1, 1, 1, 1, 1, 1, 1, 1}), "", {})}}}),
              IsInvalid("round 0 of layer \"b\": it has weights that are not finite"));
  EXPECT_THAT(session->CalcThresholds({of_a, {1, {}}}),
              IsInvalid("counts of layer \"b\" have 0 rounds; float32 has 1 to 2"));
  EXPECT_THAT(session->CalcThresholds({of_a, {1, {of_b.rounds[0], {}, {}}}}),
              IsInvalid("counts of layer \"b\" have 3 rounds; float32 has 1 to 2"));
  EXPECT_EQ(StateOf(*session), before);

  EXPECT_THAT(BindOne("random", {{"sparsity", 0.5}}, {3})->CalcThresholds({of_a}),
              IsInvalid("counts of layer \"layer\" are not enough for config_list[0]: its weight "
                        "is needed"));
  EXPECT_THAT(BindTwo("lamp", {{"sparsity", 0.5}}, DataType::kFloat32)->CalcThresholds({of_a}),
              IsInvalid(HasSubstr("its weight is needed")));
  EXPECT_THAT(BindOne("naive", json::object(), {3})->CalcThresholds({of_a}),
              Fails(absl::StatusCode::kFailedPrecondition, HasSubstr("a quantizer")));
  const auto apart = BindTwo("level", {{"sparsity", 0.5}}, DataType::kFloat32, 3);
  EXPECT_THAT(apart->CalcThresholds({of_a, of_b}),
              IsInvalid(HasSubstr("does not decide about are among them")));
}

// Keys of several types are not comparable.
TEST(CountsTest, JointLayersOfSeveralTypesNeedWeights) {
  const auto session =
      TryBind(MakeBinding("global_magnitude", json::array({{{"sparsity", 0.5}}}),
                          {MakeLayer("a", {3}), MakeLayer("b", {4}, DataType::kFloat16)}));
  ASSERT_THAT(session, IsOk());
  EXPECT_FALSE((*session)->plan().rules[0]->takes_counts);
  EXPECT_TRUE(
      BindTwo("level", {{"sparsity", 0.5}}, DataType::kFloat16)->plan().rules[0]->takes_counts);
}

}  // namespace
}  // namespace nni_compression::compression
