// A guarded algorithm answers what it answers unguarded, and what it throws is a status.
#include "server/external/guarded_compressor.h"

#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "compression/session/session.h"
#include "tests/compression/testing.h"
#include "tests/testing/fake_clock.h"

namespace nni_compression::server {
namespace {

using compression::AlgorithmInfo;
using compression::Fails;
using compression::IsOk;
using compression::Layer;
using compression::LayerState;
using compression::Mask;
using compression::QuantizeReply;
using compression::Registry;
using compression::Session;
using ::testing::HasSubstr;

class GuardedTest : public ::testing::Test {
 protected:
  ~GuardedTest() override { host_->Stop(); }

  absl::StatusOr<std::unique_ptr<Session>> TryBind(const AlgorithmInfo& info,
                                                   const nlohmann::json& rule) {
    auto registry = std::make_unique<Registry>();
    EXPECT_THAT(registry->Add(info), IsOk());
    registries_.push_back(std::move(registry));
    return Session::Bind(*registries_.back(),
                         compression::MakeBinding(info.name, nlohmann::json::array({rule}),
                                                  {compression::MakeLayer("layer", {4, 3})}));
  }

  // The state of two sessions, of an algorithm and of the same one guarded, after the same calls.
  void ExpectSame(const std::string& algorithm, const nlohmann::json& rule,
                  const std::function<void(Session&)>& calls) {
    const AlgorithmInfo& info = **compression::AllAlgorithms().Find(algorithm);
    auto plain = TryBind(info, rule);
    auto guarded = TryBind(Guarded(info, host_), rule);
    ASSERT_THAT(plain, IsOk());
    ASSERT_THAT(guarded, IsOk());
    for (Session* session : {plain->get(), guarded->get()}) {
      calls(*session);
      states_.push_back(StateOf(*session));
    }
    EXPECT_EQ((*guarded)->StaleLayers(), (*plain)->StaleLayers());
    EXPECT_EQ((*guarded)->plan().needs_epoch, (*plain)->plan().needs_epoch);
    EXPECT_EQ((*guarded)->plan().needs_step, (*plain)->plan().needs_step);
    EXPECT_EQ(states_[0], states_[1]);
    EXPECT_NE(states_[0], StateOf(**TryBind(info, rule)));
  }

  testing::FakeClock clock_;
  TimerThread timers_{&clock_};
  const std::shared_ptr<ExternalHost> host_ =
      std::make_shared<ExternalHost>("guarded", absl::Seconds(5), &timers_, nullptr);
  std::vector<std::unique_ptr<Registry>> registries_;  // outlive their sessions
  std::vector<std::string> states_;
};

TEST_F(GuardedTest, PrunersAnswerTheSame) {
  ExpectSame("agp", {{"final_sparsity", 0.8}, {"end_epoch", 4}}, [](Session& session) {
    for (const int epoch : {0, 2}) {
      ASSERT_THAT(session.UpdateEpoch(epoch), IsOk());
      EXPECT_TRUE(session.IsStale(0));
      const auto answer = session.CalcMask(0, compression::Random({4, 3}, 1));
      ASSERT_THAT(answer, IsOk());
      EXPECT_NEAR(answer->target_sparsity.value(), epoch == 0 ? 0 : 0.8 * 26 / 27, 1e-12);
    }
    ASSERT_THAT(session.UpdateEpoch(3), IsOk());
  });
}

TEST_F(GuardedTest, JointPrunersAnswerTheSame) {
  const nlohmann::json rule = {{"final_sparsity", 0.8}, {"end_epoch", 4}, {"scope", "global"}};
  ExpectSame("agp", rule, [](Session& session) {
    for (const int epoch : {0, 2}) {
      ASSERT_THAT(session.UpdateEpoch(epoch), IsOk());
      EXPECT_TRUE(session.IsJoint(0));
      EXPECT_TRUE(session.IsStale(0));
      ASSERT_THAT(session.CalcMasks({{0, compression::Random({4, 3}, 1)}}), IsOk());
      EXPECT_FALSE(session.IsStale(0));
    }
    ASSERT_THAT(session.UpdateEpoch(3), IsOk());
  });
  EXPECT_THAT(TryBind(Guarded(**Registry::Builtin().Find("global_magnitude"), host_),
                      {{"sparsity", 0.5}, {"max_sparsity", 0.5}, {"min_sparsity", 0.6}}),
              compression::IsInvalid(HasSubstr("min_sparsity is 0.6")));
}

TEST_F(GuardedTest, JointScriptsWithStatisticsAnswerTheSame) {
  ExpectSame("first_order", {{"sparsity", 0.8}, {"end_epoch", 4}}, [](Session& session) {
    const std::vector<compression::LayerWeight> weights = {{0, compression::Random({4, 3}, 1)}};
    EXPECT_THAT(session.CalcMasks(weights), Fails(absl::StatusCode::kFailedPrecondition,
                                                  HasSubstr("has no weight_gradient yet")));
    GiveStatistics(session, 0);
    for (const int epoch : {0, 2}) {
      ASSERT_THAT(session.UpdateEpoch(epoch), IsOk());
      EXPECT_TRUE(session.IsJoint(0));
      EXPECT_TRUE(session.IsStale(0));
      ASSERT_THAT(session.CalcMasks(weights), IsOk());
      EXPECT_FALSE(session.IsStale(0));
    }
    EXPECT_EQ(session.plan().rules[0]->compressor->work_bytes(session.layer(0)), 12 * (4 + 8));
    ASSERT_THAT(session.UpdateEpoch(3), IsOk());
  });
}

TEST_F(GuardedTest, QuantizersAnswerTheSame) {
  const nlohmann::json rule = {{"quant_types", {"weight", "output"}},
                               {"quant_bits", 4},
                               {"quant_scheme", "per_channel_symmetric"},
                               {"quant_start_step", 3}};
  ExpectSame("qat", rule, [](Session& session) {
    using compression::Activation;
    ASSERT_THAT(session.Step(3), IsOk());
    EXPECT_THAT(session.QuantizeWeight(0, compression::Random({4, 3}, 1), QuantizeReply::kCodes),
                IsOk());
    EXPECT_THAT(session.QuantizeRange(0, {{-1, -2, -3, -4}, {1, 2, 3, 4}}), IsOk());
    EXPECT_THAT(session.ObserveActivation(0, Activation::kOutput, {{-1}, {2}}), IsOk());
    EXPECT_TRUE(session.QuantizeActivation(0, Activation::kOutput)->parameters.has_value());
    EXPECT_THAT(session.ObserveActivation(0, Activation::kInput, {{-1}, {2}}),
                compression::IsInvalid(HasSubstr("are not quantized")));
  });
}

class Thrower : public compression::Pruner {
 public:
  Thrower() {
    traits_.needs_epoch = true;
    traits_.remembered = {{"scale", compression::Remembered::Kind::kScale}};
    traits_.remembers_more = true;
    traits_.takes_counts = true;
  }

  bool IsStale(const Layer&, const LayerState&, compression::Clock) const override {
    throw std::runtime_error("no idea");
  }
  std::optional<double> TargetSparsity(compression::Clock) const override {
    throw std::runtime_error("no idea");
  }
  int64_t work_bytes(const Layer&) const override { return -1; }
  absl::StatusOr<Mask> CalcMask(const Layer& layer, const compression::Weight&, LayerState&,
                                compression::Clock clock) const override {
    if (clock.epoch > 0) throw std::runtime_error("too late");
    return Mask::Ones(layer.elements);
  }
};

AlgorithmInfo ThrowerInfo() {
  AlgorithmInfo info;
  info.name = "thrower";
  info.create = [](const compression::Options&) { return std::make_unique<Thrower>(); };
  return info;
}

TEST_F(GuardedTest, ALayerIsStaleWhoseStalenessNobodyKnows) {
  auto session = TryBind(Guarded(ThrowerInfo(), host_), nlohmann::json::object());
  ASSERT_THAT(session, IsOk());
  const at::Tensor weight = compression::Random({4, 3}, 1);
  const auto first = (*session)->CalcMask(0, weight);
  ASSERT_THAT(first, IsOk());
  EXPECT_EQ(first->target_sparsity, std::nullopt);
  EXPECT_TRUE((*session)->IsStale(0));
  ASSERT_THAT((*session)->UpdateEpoch(1), IsOk());
  EXPECT_THAT((*session)->CalcMask(0, weight),
              Fails(absl::StatusCode::kInternal, "guarded on layer \"layer\": too late"));
}

TEST_F(GuardedTest, TraitsAreThoseOfTheAlgorithmExceptThatItIsNotAskedAboutCounts) {
  auto session = TryBind(Guarded(ThrowerInfo(), host_), nlohmann::json::object());
  ASSERT_THAT(session, IsOk());
  const compression::PlannedRule& rule = *(*session)->plan().rules[0];
  EXPECT_TRUE(rule.traits().needs_epoch);
  EXPECT_TRUE(rule.traits().remembers_more);
  EXPECT_EQ(rule.traits().remembered.size(), 1);
  EXPECT_EQ(rule.compressor->work_bytes((*session)->layer(0)), 0);  // no less
  EXPECT_FALSE(rule.takes_counts);
}

TEST_F(GuardedTest, WhatBindingThrowsIsAStatus) {
  AlgorithmInfo info = ThrowerInfo();
  info.create =
      [](const compression::Options&) -> absl::StatusOr<std::unique_ptr<compression::Compressor>> {
    throw std::runtime_error("no licence");
  };
  EXPECT_THAT(TryBind(Guarded(info, host_), nlohmann::json::object()),
              Fails(absl::StatusCode::kInternal, HasSubstr("config_list[0]: no licence")));
  info = ThrowerInfo();
  info.check_layer = [](const compression::Options&, const Layer&) -> absl::Status {
    throw std::runtime_error("too small");
  };
  EXPECT_THAT(TryBind(Guarded(info, host_), nlohmann::json::object()),
              Fails(absl::StatusCode::kInternal, HasSubstr("too small")));
}

TEST_F(GuardedTest, NothingIsCalledOnceTheServerStops) {
  auto session = TryBind(Guarded(ThrowerInfo(), host_), nlohmann::json::object());
  host_->Stop();
  EXPECT_THAT((*session)->CalcMask(0, compression::Random({4, 3}, 1)),
              Fails(absl::StatusCode::kUnavailable, HasSubstr("the server is stopping")));
}

}  // namespace
}  // namespace nni_compression::server
