// Masks from counts, against a real server.
#include "nni_compression/thresholds.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "tests/client/client_test_base.h"

namespace nni_compression {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

class ThresholdsTest : public ClientTestBase {
 protected:
  Session Bind(const BindRequest& request) {
    auto session = Connect(AddressOf(*server_)).BindModel(request);
    if (!session.ok()) {
      ADD_FAILURE() << session.status();
      std::abort();
    }
    return *std::move(session);
  }

  std::unique_ptr<server::Server> server_ = StartServer();
};

constexpr char kGradual[] = R"([{"final_sparsity": 0.9, "end_epoch": 4, "scope": "global"}])";

std::string BitsOf(const Mask& mask) { return std::string(mask.bits().begin(), mask.bits().end()); }

TEST_F(ThresholdsTest, MasksAreThoseThatWeightsGet) {
  for (const auto& [algorithm, rule] : {std::pair("level", kLevel), std::pair("agp", kGradual)}) {
    const Session by_weights = Bind(Request(algorithm, rule, {"a", "b"}, 3, 1001));
    const Session by_counts = Bind(Request(algorithm, rule, {"a", "b"}, 3, 1001));
    std::vector<std::optional<Mask>> masks(2);
    for (int64_t epoch = 0; epoch < 4; ++epoch) {
      const auto a = Weight(3003, static_cast<int>(10 * epoch + 1));
      const auto b = Weight(3003, static_cast<int>(10 * epoch + 2));
      const std::vector<Tensor> weights = {MakeTensor<float>("a", {3, 1001}, a),
                                           MakeTensor<float>("b", {3, 1001}, b)};
      const auto stale = by_weights.UpdateEpoch(epoch);
      ASSERT_TRUE(stale.ok()) << stale.status();
      EXPECT_EQ(*by_counts.UpdateEpoch(epoch), *stale);
      if (stale->empty()) continue;
      const auto expected = AllOrError(by_weights.CalcMask(weights));
      ASSERT_TRUE(expected.ok()) << expected.status();
      std::vector<CountedLayer> layers;
      for (size_t i = 0; i < 2; ++i) {
        layers.push_back(CountWeight(weights[i], masks[i] ? &*masks[i] : nullptr));
      }
      const auto found = AllOrError(by_counts.CalcThresholds(layers));
      ASSERT_TRUE(found.ok()) << found.status();
      for (size_t i = 0; i < 2; ++i) {
        const auto& threshold = std::get<Threshold>((*found)[i]);
        auto mask = MaskFromThreshold(weights[i], masks[i] ? &*masks[i] : nullptr, threshold);
        ASSERT_TRUE(mask.ok()) << mask.status();
        EXPECT_EQ(BitsOf(*mask), BitsOf((*expected)[i])) << algorithm << " epoch " << epoch;
        EXPECT_EQ(mask->target_sparsity(), (*expected)[i].target_sparsity());
        masks[i] = *std::move(mask);
      }
      EXPECT_THAT(*by_counts.UpdateEpoch(epoch), IsEmpty());
    }
  }
}

TEST_F(ThresholdsTest, ARankGetsTheMaskThatAnotherRankSentWeightsFor) {
  const Session session = Bind(Request("level", kLevel, {"a"}, 1, 50));
  const auto values = Weight(50, 1);
  const Tensor weight = MakeTensor<float>("a", {1, 50}, values);
  const auto mask = session.CalcMask({weight});
  ASSERT_TRUE(mask[0].ok()) << mask[0].status();
  const auto found = session.CalcThresholds({CountWeight(weight, nullptr)});
  ASSERT_TRUE(found[0].ok()) << found[0].status();
  EXPECT_EQ(BitsOf(std::get<Mask>(*found[0])), BitsOf(*mask[0]));
}

TEST_F(ThresholdsTest, ALayersErrorLeavesTheOthersAlone) {
  const Session session = Bind(Request("level", kLevel, {"a", "b", "c"}, 1, 50));
  const auto good = Weight(50, 1);
  auto bad = good;
  bad[7] = std::numeric_limits<float>::infinity();
  CountedLayer failing = CountWeight(MakeTensor<float>("c", {1, 50}, good), nullptr);
  failing.count = [](uint64_t, int) { return absl::AbortedError("no counts today"); };
  const auto found =
      session.CalcThresholds({CountWeight(MakeTensor<float>("a", {1, 50}, good), nullptr),
                              CountWeight(MakeTensor<float>("b", {1, 50}, bad), nullptr), failing});
  EXPECT_TRUE(found[0].ok()) << found[0].status();
  EXPECT_EQ(found[1].status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(found[1].status().message()),
              HasSubstr("round 0 of layer \"b\": it has weights that are not finite"));
  EXPECT_EQ(found[2].status().message(), "no counts today");
  EXPECT_THAT(*session.UpdateEpoch(0), UnorderedElementsAre("b", "c"));
}

TEST_F(ThresholdsTest, AThresholdOfAnotherWeightIsRefused) {
  const auto values = Weight(50, 1);
  const Tensor weight = MakeTensor<float>("a", {1, 50}, values);
  Threshold threshold;
  threshold.pruned = 3;
  EXPECT_EQ(MaskFromThreshold(weight, nullptr, threshold).status().code(),
            absl::StatusCode::kInternal);
  const auto codes = std::vector<int8_t>(50);
  EXPECT_EQ(CountWeight(MakeTensor<int8_t>("a", {50}, codes), nullptr).count(0, 0).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace nni_compression
