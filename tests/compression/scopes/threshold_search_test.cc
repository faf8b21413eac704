#include "compression/scopes/threshold_search.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "compression/kernels/count.h"
#include "compression/scopes/global.h"
#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using testing::HasSubstr;

struct Sample {
  at::Tensor weight;
  std::string before;  // the mask in force; empty: none
  CountedLayer counted;
};

Sample MakeSample(at::Tensor weight, DataType dtype, std::string before = "",
                  double min_sparsity = 0, double max_sparsity = 1) {
  Sample data{std::move(weight), std::move(before), {}};
  CountedLayer& layer = data.counted;
  layer.dtype = dtype;
  layer.elements = data.weight.numel();
  layer.previously_pruned = std::count(data.before.begin(), data.before.end(), '0');
  const auto share = [&layer](double sparsity) {
    return std::max(layer.previously_pruned,
                    static_cast<int64_t>(static_cast<double>(layer.elements) * sparsity));
  };
  layer.at_most = share(max_sparsity);
  layer.at_least = std::min(layer.at_most, share(min_sparsity));
  return data;
}

std::vector<Threshold> FindThresholds(const std::vector<Sample>& layers, int64_t total) {
  std::vector<CountedLayer> counted;
  for (const Sample& layer : layers) counted.push_back(layer.counted);
  ThresholdSearch search(counted, total);
  for (int round = 0; round < ThresholdSearch::Rounds(counted[0].dtype); ++round) {
    EXPECT_FALSE(search.done());
    std::vector<CountsRound> rounds;
    for (size_t i = 0; i < layers.size(); ++i) {
      rounds.push_back(CountRound(layers[i].weight, layers[i].before, search.threshold(i)));
      EXPECT_THAT(search.Check(i, rounds.back()), IsOk());
    }
    search.Count(std::move(rounds));
  }
  EXPECT_TRUE(search.done());
  std::vector<Threshold> thresholds;
  for (size_t i = 0; i < layers.size(); ++i) thresholds.push_back(search.threshold(i));
  return thresholds;
}

// The counts of the scope `global`, which has the weights.
std::vector<int64_t> GlobalCounts(const std::vector<Sample>& layers, int64_t total) {
  std::vector<RankedLayer> ranked;
  std::vector<Mask> masks;
  masks.reserve(layers.size());
  for (const Sample& data : layers) {
    RankedLayer layer;
    layer.dtype = data.counted.dtype;
    layer.scores = data.weight.data_ptr();
    layer.elements = data.counted.elements;
    if (!data.before.empty()) {
      masks.push_back(MaskOf(data.before));
      layer.previous = masks.back().bits().data();
    }
    layer.previously_pruned = data.counted.previously_pruned;
    layer.at_least = data.counted.at_least;
    layer.at_most = data.counted.at_most;
    ranked.push_back(layer);
  }
  return CountGlobally(ranked, total, Normalize::kNone).counts;
}

TEST(ThresholdSearchTest, FindsTheCountsThatTheScopeGlobalFinds) {
  std::mt19937_64 random(7);
  for (const DataType dtype :
       {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16, DataType::kFloat64}) {
    for (int round = 0; round < 60; ++round) {
      std::vector<Sample> layers;
      int64_t least = 0, most = 0;
      const auto many = 1 + random() % 5;
      for (uint64_t l = 0; l < many; ++l) {
        const auto n = static_cast<int64_t>(1 + random() % (round % 5 == 0 ? 3000 : 40));
        at::Tensor weight = Random({n}, random(), DataType::kFloat32, 0.5 + static_cast<double>(l));
        if (random() % 3 == 0) weight = weight.round();  // ties, zeros and -0.0
        weight = weight.to(ToScalarType(dtype).value());
        std::string before;
        if (random() % 3 == 0) {
          for (int64_t i = 0; i < n; ++i) before.push_back(random() % 4 == 0 ? '0' : '1');
        }
        const double limit = random() % 2 == 0 ? 0 : 0.3;
        layers.push_back(MakeSample(weight, dtype, before, limit, 1 - limit));
        least += layers.back().counted.at_least;
        most += layers.back().counted.at_most;
      }
      // Beyond the limits, too.
      const auto total = static_cast<int64_t>(random() % (most + 3));
      const std::vector<Threshold> found = FindThresholds(layers, total);
      const std::vector<int64_t> expected = GlobalCounts(layers, total);
      int64_t sum = 0;
      for (size_t i = 0; i < layers.size(); ++i) {
        EXPECT_EQ(found[i].pruned, expected[i]) << DataTypeName(dtype) << " " << round;
        sum += found[i].pruned;
        const std::string mask = MaskFrom(layers[i].weight, layers[i].before, found[i]);
        EXPECT_EQ(std::count(mask.begin(), mask.end(), '0'), expected[i]);
        EXPECT_GE(found[i].ties, 0);
      }
      EXPECT_EQ(sum, std::clamp(total, least, most));
    }
  }
}

TEST(ThresholdSearchTest, LayersThatNoLimitDecidesAboutHaveOneThreshold) {
  const std::vector<Sample> layers = {
      MakeSample(Values({1, 2, 3, 4}), DataType::kFloat32),
      MakeSample(Values({1, 2, 3, 4}), DataType::kFloat32),
      MakeSample(Values({10, 20, 30, 40}), DataType::kFloat32, "", 0.5),
  };
  const std::vector<Threshold> found = FindThresholds(layers, 5);
  EXPECT_EQ(found[0].key, found[1].key);
  EXPECT_EQ(found[0].pruned, 2);  // the tie goes to the first layer
  EXPECT_EQ(found[1].pruned, 1);
  EXPECT_EQ(MaskFrom(layers[2].weight, "", found[2]), "0011");
}

TEST(ThresholdSearchTest, RefusesCountsThatDoNotAddUp) {
  const Sample data = MakeSample(Values({1, 1.0001, 2, 3}), DataType::kFloat32, "1101");
  ThresholdSearch search({data.counted}, 2);
  const CountsRound good = CountRound(data.weight, data.before, {});
  ASSERT_THAT(search.Check(0, good), IsOk());
  CountsRound bad = good;
  ++bad.digits[0].count;
  EXPECT_THAT(search.Check(0, bad),
              IsInvalid("the counts add up to more than 3, the weights that the layer's mask in "
                        "the session keeps"));
  bad = good;
  bad.digits.pop_back();
  EXPECT_THAT(search.Check(0, bad), IsInvalid(HasSubstr("add up to less than 3, ")));
  bad.digits.push_back({0x7000, int64_t{1} << 62});
  bad.digits.push_back({0x7001, int64_t{1} << 62});
  EXPECT_THAT(search.Check(0, bad), IsInvalid(HasSubstr("add up to more than 3, ")));
  search.Count({good});
  EXPECT_THAT(search.Check(0, {search.threshold(0).key, {}}),
              IsInvalid(HasSubstr("less than 2, the weights that have this prefix")));
}

TEST(ThresholdSearchTest, RefusesWeightsThatAreNotFinite) {
  for (const DataType dtype :
       {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16, DataType::kFloat64}) {
    for (const double bad : {double{NAN}, double{INFINITY}, -double{INFINITY}}) {
      const Sample data = MakeSample(Values({1, bad, 2}, dtype), dtype);
      const ThresholdSearch search({data.counted}, 1);
      EXPECT_THAT(search.Check(0, CountRound(data.weight, "", {})),
                  IsInvalid("it has weights that are not finite"));
    }
    const double largest = KeyValue(dtype, KeyEnd(dtype) - 1);
    const Sample data = MakeSample(Values({1, largest, -largest}, dtype), dtype);
    EXPECT_EQ(FindThresholds({data}, 2)[0].pruned, 2);
  }
}

}  // namespace
}  // namespace nni_compression::compression
