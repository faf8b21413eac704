#include "compression/scopes/global.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <tuple>

#include "compression/kernels/count.h"
#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using testing::ElementsAre;

// A layer of a rule, with what its RankedLayer points to.
struct Data {
  at::Tensor scores;
  std::optional<Mask> previous = std::nullopt;
  double min_sparsity = 0;
  double max_sparsity = 1;

  RankedLayer Ranked(DataType dtype) const {
    RankedLayer layer;
    layer.dtype = dtype;
    layer.scores = scores.data_ptr();
    layer.elements = scores.numel();
    if (previous) layer.previous = previous->bits().data();
    layer.previously_pruned = previous ? previous->pruned() : 0;
    const auto share = [&](double sparsity) {
      return std::max(layer.previously_pruned,
                      static_cast<int64_t>(static_cast<double>(layer.elements) * sparsity));
    };
    layer.at_most = share(max_sparsity);
    layer.at_least = std::min(layer.at_most, share(min_sparsity));
    return layer;
  }
};

std::vector<double> Magnitudes(const Data& data) {
  const at::Tensor wide = data.scores.to(at::kDouble).abs().contiguous().view(-1);
  std::vector<double> kept;
  for (int64_t i = 0; i < wide.numel(); ++i) {
    if (!data.previous || data.previous->kept(i)) {
      kept.push_back(static_cast<const double*>(wide.data_ptr())[i]);
    }
  }
  std::stable_sort(kept.begin(), kept.end());
  return kept;
}

// By the formulas, of sorted magnitudes.
std::vector<double> Normalized(const std::vector<double>& sorted, Normalize normalize) {
  double sum = 0, square = 0;
  for (const double x : sorted) {
    sum += x;
    square += x * x;
  }
  std::vector<double> scores(sorted.size());
  double after = 0;
  for (size_t i = sorted.size(); i-- > 0;) {
    const double x = sorted[i];
    after += x * x;
    if (x == 0) continue;
    if (normalize == Normalize::kNone) scores[i] = x;
    if (normalize == Normalize::kMean) scores[i] = x / (sum / static_cast<double>(sorted.size()));
    if (normalize == Normalize::kL2) scores[i] = x / std::sqrt(square);
    if (normalize == Normalize::kLamp) scores[i] = x * x / after;
  }
  return scores;
}

// Sorts everything: the layers' mandatory weights first, the others by score and layer.
std::vector<int64_t> Reference(const std::vector<Data>& layers, DataType dtype, int64_t total,
                               Normalize normalize) {
  std::vector<int64_t> counts;
  std::vector<std::tuple<double, size_t, int64_t>> others;
  int64_t left = total;
  for (size_t l = 0; l < layers.size(); ++l) {
    const RankedLayer ranked = layers[l].Ranked(dtype);
    counts.push_back(ranked.at_least);
    left -= ranked.at_least;
    const std::vector<double> scores = Normalized(Magnitudes(layers[l]), normalize);
    for (int64_t i = ranked.at_least; i < ranked.at_most; ++i) {
      others.emplace_back(scores[i - ranked.previously_pruned], l, i);
    }
  }
  std::sort(others.begin(), others.end());
  for (int64_t i = 0; i < left && i < static_cast<int64_t>(others.size()); ++i) {
    ++counts[std::get<1>(others[i])];
  }
  return counts;
}

std::vector<int64_t> Counts(const std::vector<Data>& layers, DataType dtype, int64_t total,
                            Normalize normalize, int64_t grain = kGrain) {
  std::vector<RankedLayer> ranked;
  for (const Data& layer : layers) ranked.push_back(layer.Ranked(dtype));
  const PruneCounts counts = CountGlobally(ranked, total, normalize, grain);
  EXPECT_FALSE(counts.not_finite.has_value());
  return counts.counts;
}

Data Plain(std::vector<double> values, DataType dtype = DataType::kFloat32) {
  return {Values(std::move(values), dtype)};
}

// Whether no pruned score is above a kept one, within the rounding of sums: LAMP scores of
// different layers that are equal by the formula are not in float64.
bool SplitsAtAThreshold(const std::vector<Data>& layers, DataType dtype,
                        const std::vector<int64_t>& counts, Normalize normalize) {
  double pruned = 0;
  double kept = std::numeric_limits<double>::infinity();
  for (size_t l = 0; l < layers.size(); ++l) {
    const RankedLayer ranked = layers[l].Ranked(dtype);
    const std::vector<double> scores = Normalized(Magnitudes(layers[l]), normalize);
    const int64_t next = counts[l] - ranked.previously_pruned;
    if (counts[l] > ranked.at_least) pruned = std::max(pruned, scores[next - 1]);
    if (counts[l] < ranked.at_most) kept = std::min(kept, scores[next]);
  }
  return pruned <= kept * (1 + 1e-12);
}

constexpr Normalize kAll[] = {Normalize::kNone, Normalize::kMean, Normalize::kL2, Normalize::kLamp};

TEST(GlobalTest, SharesOneThreshold) {
  const std::vector<Data> layers = {Plain({1, -6, 3}), Plain({-2, 4, 5, 0})};
  EXPECT_THAT(Counts(layers, DataType::kFloat32, 0, Normalize::kNone), ElementsAre(0, 0));
  EXPECT_THAT(Counts(layers, DataType::kFloat32, 3, Normalize::kNone), ElementsAre(1, 2));
  EXPECT_THAT(Counts(layers, DataType::kFloat32, 4, Normalize::kNone), ElementsAre(2, 2));
  EXPECT_THAT(Counts(layers, DataType::kFloat32, 7, Normalize::kNone), ElementsAre(3, 4));
}

TEST(GlobalTest, TiesGoToTheFirstLayers) {
  const std::vector<Data> layers = {Plain({1, 1, 2}), Plain({1, -1}), Plain({0, 1})};
  EXPECT_THAT(Counts(layers, DataType::kFloat32, 1, Normalize::kNone), ElementsAre(0, 0, 1));
  EXPECT_THAT(Counts(layers, DataType::kFloat32, 2, Normalize::kNone), ElementsAre(1, 0, 1));
  EXPECT_THAT(Counts(layers, DataType::kFloat32, 4, Normalize::kNone), ElementsAre(2, 1, 1));
}

// Squares of (1, 2, 3): suffix sums 14, 13, 9; of (10, 10): 200, 100.
TEST(GlobalTest, LampKeepsTheLargestOfEachLayer) {
  const std::vector<Data> layers = {Plain({1, 2, 3}), Plain({10, 10})};
  EXPECT_THAT(Counts(layers, DataType::kFloat32, 1, Normalize::kLamp), ElementsAre(1, 0));
  EXPECT_THAT(Counts(layers, DataType::kFloat32, 2, Normalize::kLamp), ElementsAre(2, 0));
  EXPECT_THAT(Counts(layers, DataType::kFloat32, 3, Normalize::kLamp), ElementsAre(2, 1));
  EXPECT_THAT(Counts(layers, DataType::kFloat32, 4, Normalize::kLamp), ElementsAre(3, 1));
}

// u_l = the share of layer l's squared weight that is removed: LAMP minimizes sum_l -ln(1 - u_l).
TEST(GlobalTest, LampMinimizesTheSumOfTheLogarithms) {
  for (int seed = 0; seed < 40; ++seed) {
    std::vector<Data> layers;
    for (int l = 0; l < 3; ++l) {
      layers.push_back({Random({4 + l}, 10 * seed + l, DataType::kFloat32, 1 + l)});
    }
    std::vector<std::vector<double>> losses;
    for (const Data& layer : layers) {
      const std::vector<double> sorted = Magnitudes(layer);
      double kept = 0;
      for (const double x : sorted) kept += x * x;
      const double all = kept;
      std::vector<double>& loss = losses.emplace_back();
      for (const double x : sorted) {
        loss.push_back(-std::log(kept / all));
        kept -= x * x;
      }
    }
    const auto loss_of = [&](const std::vector<int64_t>& counts) {
      double loss = 0;
      for (size_t l = 0; l < counts.size(); ++l) loss += losses[l].at(counts[l]);
      return loss;
    };
    const int64_t total = 3 + seed % 7;
    double best = INFINITY;
    for (int64_t a = 0; a < 4; ++a) {
      for (int64_t b = 0; b < 5; ++b) {
        const int64_t c = total - a - b;
        if (c >= 0 && c < 6) best = std::min(best, loss_of({a, b, c}));
      }
    }
    EXPECT_NEAR(loss_of(Counts(layers, DataType::kFloat32, total, Normalize::kLamp)), best, 1e-9);
  }
}

// Values of some distributions that selection has trouble with.
at::Tensor Draw(std::mt19937_64& random, int64_t n, DataType dtype) {
  std::vector<double> values(n);
  std::normal_distribution<double> normal;
  const auto kind = random() % 6;
  const double scale = std::pow(2.0, static_cast<double>(random() % 9) - 4);
  for (double& value : values) {
    value = scale * normal(random);
    if (kind == 1) value = std::round(value * 2);   // ties and zeros
    if (kind == 2) value = 0.5;                     // all equal
    if (kind == 3 && random() % 2 == 0) value = 0;  // many zeros
    if (kind == 4) value = std::ldexp(value, static_cast<int>(random() % 12) - 8);
    if (kind == 5) value = 0;
  }
  return Values(values, dtype);
}

TEST(GlobalTest, CountsAsSortingEverythingDoes) {
  constexpr int kRounds = 20;
  std::mt19937_64 random(1);
  for (const DataType dtype :
       {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16, DataType::kFloat64}) {
    for (const Normalize normalize : kAll) {
      int differing = 0;
      for (int round = 0; round < kRounds; ++round) {
        std::vector<Data> layers;
        int64_t elements = 0, least = 0, most = 0;
        const auto many = 1 + random() % 6;
        const double limit = random() % 3 == 0 ? 0.3 : 0;
        for (uint64_t l = 0; l < many; ++l) {
          Data data;
          const auto n = static_cast<int64_t>(1 + random() % (round % 4 == 0 ? 9000 : 60));
          data.scores = Draw(random, n, dtype);
          data.min_sparsity = limit;
          data.max_sparsity = 1 - limit;
          if (random() % 3 == 0) {
            std::string bits;
            for (int64_t i = 0; i < n; ++i) bits.push_back(random() % 4 == 0 ? '0' : '1');
            data.previous = MaskOf(bits);
          }
          const RankedLayer ranked = data.Ranked(dtype);
          elements += ranked.elements;
          least += ranked.at_least;
          most += ranked.at_most;
          layers.push_back(std::move(data));
        }
        const auto total = static_cast<int64_t>(least + random() % (most - least + 1));
        const std::vector<int64_t> counts = Counts(layers, dtype, total, normalize);
        const std::vector<int64_t> expected = Reference(layers, dtype, total, normalize);
        int64_t sum = 0;
        for (const int64_t count : counts) sum += count;
        EXPECT_EQ(sum, total);
        EXPECT_TRUE(SplitsAtAThreshold(layers, dtype, counts, normalize));
        if (normalize == Normalize::kNone) {
          EXPECT_EQ(counts, expected);
        }
        differing += counts != expected;
      }
      EXPECT_LE(differing, kRounds / 4)
          << DataTypeName(dtype) << " " << static_cast<int>(normalize);
    }
  }
}

TEST(GlobalTest, DoesNotDependOnThreadsOrGrain) {
  const int before = at::get_num_threads();
  std::vector<Data> layers;
  for (int l = 0; l < 3; ++l) layers.push_back({Random({50000 + l}, l)});
  for (const Normalize normalize : kAll) {
    at::set_num_threads(1);
    const auto one = Counts(layers, DataType::kFloat32, 77777, normalize);
    at::set_num_threads(8);
    EXPECT_EQ(Counts(layers, DataType::kFloat32, 77777, normalize, 1024), one);
    EXPECT_EQ(Counts(layers, DataType::kFloat32, 77777, normalize, 64), one);
  }
  at::set_num_threads(before);
}

TEST(GlobalTest, ComparesLayersOfSeveralTypesByValue) {
  const Data half = Plain({1, 2, 3}, DataType::kFloat16);
  const Data wide = Plain({1.5, 2.5, 0.5, 1e-300}, DataType::kFloat64);
  const std::vector<RankedLayer> layers = {half.Ranked(DataType::kFloat16),
                                           wide.Ranked(DataType::kFloat64)};
  EXPECT_THAT(CountGlobally(layers, 4, Normalize::kNone).counts, ElementsAre(1, 3));
}

TEST(GlobalTest, NamesTheFirstLayerThatIsNotFinite) {
  const Data good = Plain({1, 2, 3});
  for (const Normalize normalize : kAll) {
    for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity(),
                             -std::numeric_limits<double>::infinity()}) {
      const Data poor = Plain({1, bad});
      const PruneCounts counts =
          CountGlobally({good.Ranked(DataType::kFloat32), poor.Ranked(DataType::kFloat32),
                         poor.Ranked(DataType::kFloat32)},
                        2, normalize);
      EXPECT_EQ(counts.not_finite, 1u);
      EXPECT_TRUE(counts.counts.empty());
    }
  }
}

TEST(GlobalTest, EveryNumberOfFloat64IsCounted) {
  constexpr auto kDouble = DataType::kFloat64;
  constexpr double kSmallest = std::numeric_limits<double>::denorm_min();
  constexpr double kLargest = std::numeric_limits<double>::max();
  const std::vector<Data> layers = {Plain({1e300, kLargest, 1e307, 0}, kDouble),
                                    Plain({kSmallest, 0, 3 * kSmallest}, kDouble)};
  for (const Normalize normalize :
       {Normalize::kNone, Normalize::kMean, Normalize::kL2, Normalize::kLamp}) {
    for (int64_t total = 0; total <= 7; ++total) {
      const auto counts = Counts(layers, kDouble, total, normalize);
      EXPECT_EQ(counts[0] + counts[1], total) << static_cast<int>(normalize);
    }
  }
  EXPECT_THAT(Counts(layers, kDouble, 5, Normalize::kNone), ElementsAre(2, 3));
  EXPECT_THAT(Counts(layers, kDouble, 6, Normalize::kNone), ElementsAre(3, 3));
}

TEST(GlobalTest, ExtremeMagnitudesNeitherOverflowNorVanish) {
  const std::vector<Data> layers = {Plain({1e300, 2e300, 1e-300}, DataType::kFloat64),
                                    Plain({1e-300, 3e-300}, DataType::kFloat64)};
  EXPECT_THAT(Counts(layers, DataType::kFloat64, 2, Normalize::kLamp), ElementsAre(1, 1));
  EXPECT_THAT(Counts(layers, DataType::kFloat64, 3, Normalize::kLamp), ElementsAre(2, 1));
  EXPECT_THAT(Counts(layers, DataType::kFloat64, 2, Normalize::kL2), ElementsAre(1, 1));

  const Data largest = Plain({1.1e308, 2e307, 3e307, 1e308}, DataType::kFloat64);
  const Data subnormal = Plain({4e-323, 1e-323, 2e-323, 3e-323}, DataType::kFloat64);
  for (const Normalize normalize : kAll) {
    for (int64_t total = 0; total <= 4; ++total) {
      EXPECT_THAT(Counts({largest}, DataType::kFloat64, total, normalize), ElementsAre(total));
      EXPECT_THAT(Counts({subnormal}, DataType::kFloat64, total, normalize), ElementsAre(total));
    }
  }
}

TEST(GlobalTest, TheLargestNumbersOfATypeAreNumbersAsAllOthers) {
  for (const DataType dtype :
       {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16, DataType::kFloat64}) {
    std::vector<double> largest, scaled;
    for (int64_t i = 1; i <= 4; ++i) {
      largest.push_back(KeyValue(dtype, KeyEnd(dtype) - i));
      scaled.push_back(largest.back() / 8);
    }
    const Data other = Plain({1, 1.25, 1.5, 1.75, 2}, dtype);
    for (int64_t total = 0; total <= 9; ++total) {
      EXPECT_EQ(Counts({Plain(largest, dtype), other}, dtype, total, Normalize::kLamp),
                Counts({Plain(scaled, dtype), other}, dtype, total, Normalize::kLamp));
    }
  }
}

}  // namespace
}  // namespace nni_compression::compression
