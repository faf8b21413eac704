#include "compression/scopes/global_filters.h"

#include <algorithm>
#include <random>

#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using testing::ElementsAre;

struct Given {
  std::vector<Layer> layers;
  std::vector<FilterSet> sets;
  std::vector<RankedSet> ranked;
  std::vector<std::vector<double>> scores;

  Given(const std::vector<std::pair<int64_t, int64_t>>& shapes,
        std::vector<std::vector<double>> numbers, int64_t round_to = 1)
      : scores(std::move(numbers)) {
    for (const auto& [filters, weights] : shapes) {
      layers.push_back(MakeLayer("layer", {filters, weights}));
      layers.back().elements = filters * weights;
    }
    std::vector<FilterLayer> of;
    for (const Layer& layer : layers) of.push_back({&layer, nullptr});
    sets = FilterSet::Of(of, round_to);
    for (const FilterSet& set : sets) ranked.push_back({&set, 0, set.counts().back()});
  }

  std::vector<int64_t> Count(int64_t total, Normalize normalize = Normalize::kNone) const {
    std::vector<std::vector<std::vector<int64_t>>> orders;
    for (size_t s = 0; s < sets.size(); ++s) orders.push_back(sets[s].Order(scores[s]));
    return CountFiltersGlobally(ranked, scores, orders, total, normalize);
  }
};

TEST(GlobalFiltersTest, TheSmallestScoresOfAllGoUntilTheWeightsAreEnough) {
  const Given given({{3, 10}, {4, 1}}, {{1, 5, 3}, {2, 4, 6, 8}});
  EXPECT_THAT(given.Count(0), ElementsAre(0, 0));
  EXPECT_THAT(given.Count(1), ElementsAre(1, 0)) << "a unit more than asked for, at most";
  EXPECT_THAT(given.Count(10), ElementsAre(1, 0));
  EXPECT_THAT(given.Count(11), ElementsAre(1, 1));
  EXPECT_THAT(given.Count(12), ElementsAre(2, 1));
  EXPECT_THAT(given.Count(22), ElementsAre(2, 2));
  EXPECT_THAT(given.Count(34), ElementsAre(2, 3)) << "one filter of each layer stays";
}

TEST(GlobalFiltersTest, EqualScoresGoInTheOrderOfLayers) {
  const Given given({{3, 1}, {3, 1}}, {{1, 1, 1}, {1, 1, 1}});
  EXPECT_THAT(given.Count(3), ElementsAre(2, 1));
}

TEST(GlobalFiltersTest, LimitsHold) {
  Given given({{4, 1}, {4, 1}}, {{1, 2, 3, 4}, {10, 20, 30, 40}});
  given.ranked[0].at_most = 2;
  given.ranked[1].at_least = 1;
  EXPECT_THAT(given.Count(1), ElementsAre(0, 1));
  EXPECT_THAT(given.Count(3), ElementsAre(2, 1));
  EXPECT_THAT(given.Count(4), ElementsAre(2, 2));
}

TEST(GlobalFiltersTest, RoundedLayersLoseSeveralFiltersAtATimeByTheirMean) {
  // Of 6 filters 4 or 2 are kept: means 1.5 and 3.5, against 2.
  const Given given({{6, 1}, {6, 1}}, {{1, 2, 3, 4, 9, 9}, {2, 2, 5, 5, 9, 9}}, 2);
  EXPECT_THAT(given.Count(1), ElementsAre(2, 0));
  EXPECT_THAT(given.Count(3), ElementsAre(2, 2));
  EXPECT_THAT(given.Count(5), ElementsAre(4, 2));
}

TEST(GlobalFiltersTest, NormalizedScoresDoNotDependOnTheScaleOfALayer) {
  const Given given({{4, 1}, {4, 1}}, {{1, 2, 3, 4}, {1000, 4000, 5000, 6000}});
  EXPECT_THAT(given.Count(2), ElementsAre(2, 0));
  EXPECT_THAT(given.Count(2, Normalize::kMean), ElementsAre(1, 1));
  EXPECT_THAT(given.Count(2, Normalize::kL2), ElementsAre(1, 1));
  const Given huge({{3, 1}, {3, 1}}, {{1e300, 2e300, 3e300}, {0, 0, 0}});
  EXPECT_THAT(huge.Count(3, Normalize::kL2), ElementsAre(1, 2));
}

// All ways to take filters are compared by their largest score.
TEST(GlobalFiltersTest, NoSmallerScoreStaysThanOneThatGoes) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::pair<int64_t, int64_t>> shapes;
    std::vector<std::vector<double>> scores;
    int64_t weights = 0;
    for (int layer = 0; layer < 3; ++layer) {
      shapes.emplace_back(1 + random() % 6, 1 + random() % 5);
      weights += shapes.back().first * shapes.back().second;
      std::vector<double>& own = scores.emplace_back();
      for (int64_t f = 0; f < shapes.back().first; ++f) own.push_back(random() % 10);
    }
    const Given given(shapes, scores);
    const int64_t total = static_cast<int64_t>(random() % static_cast<uint64_t>(weights + 1));
    const std::vector<int64_t> counts = given.Count(total);
    int64_t lost = 0;
    double highest = -1;
    int64_t of_highest = 0;
    bool more = false;
    double lowest = 100;
    for (size_t s = 0; s < counts.size(); ++s) {
      std::vector<double> sorted = scores[s];
      std::sort(sorted.begin(), sorted.end());
      lost += counts[s] * shapes[s].second;
      if (counts[s] > 0 && sorted[static_cast<size_t>(counts[s] - 1)] >= highest) {
        highest = sorted[static_cast<size_t>(counts[s] - 1)];
        of_highest = shapes[s].second;
      }
      if (counts[s] + 1 < shapes[s].first) {
        more = true;
        lowest = std::min(lowest, sorted[static_cast<size_t>(counts[s])]);
      }
    }
    EXPECT_TRUE(lost >= total || !more);
    if (lost > 0) {
      EXPECT_LT(lost - of_highest, total) << "without the last it would not be enough";
    }
    EXPECT_LE(highest, lowest);
  }
}

}  // namespace
}  // namespace nni_compression::compression
