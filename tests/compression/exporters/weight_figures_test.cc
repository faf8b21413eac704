#include "compression/exporters/weight_figures.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

constexpr double kMax = std::numeric_limits<double>::max();
constexpr double kTiny = std::numeric_limits<double>::denorm_min();

WeightFigures Of(const std::vector<double>& before, const std::vector<double>& after, int bins) {
  return Compare(static_cast<int64_t>(before.size()), bins,
                 [&](int64_t begin, absl::Span<double> b, absl::Span<double> a) {
                   std::copy_n(before.begin() + begin, b.size(), b.begin());
                   std::copy_n(after.begin() + begin, a.size(), a.begin());
                 });
}

TEST(WeightFiguresTest, CountsAndSumsOrdinaryNumbers) {
  const WeightFigures figures = Of({-1, 2, 3, 11}, {0, 2, 3, 0}, 4);
  EXPECT_EQ(figures.minimum, -1);
  EXPECT_EQ(figures.maximum, 11);
  EXPECT_EQ(figures.before, std::vector<int64_t>({1, 2, 0, 1}));
  EXPECT_EQ(figures.after, std::vector<int64_t>({2, 2, 0, 0}));
  EXPECT_EQ(figures.signal.value(), 135);
  EXPECT_EQ(figures.noise.value(), 122);
  EXPECT_DOUBLE_EQ(*Sqnr(figures.signal, figures.noise), 10 * std::log10(135.0 / 122));
}

TEST(WeightFiguresTest, ConstantsFillTheFirstBar) {
  for (double value : {0.0, -0.0, 1.0, -kMax, kTiny}) {
    const WeightFigures figures = Of({value, value}, {value, value}, 3);
    EXPECT_EQ(figures.before, std::vector<int64_t>({2, 0, 0})) << value;
    EXPECT_FALSE(Sqnr(figures.signal, figures.noise).has_value());
  }
}

// Against extended precision, which holds the square of any double.
TEST(WeightFiguresTest, EveryFiniteNumberHasItsBarAndItsShareOfSignalAndNoise) {
  if (std::numeric_limits<long double>::max_exponent < 4096) GTEST_SKIP();
  const std::vector<double> numbers = {0,    -0.0,  1,      -1,          kTiny, -kTiny, 3 * kTiny,
                                       kMax, -kMax, 1e-200, kMax / 1024, 65504, -3e38,  1e-45};
  std::mt19937_64 engine(1);
  for (int round = 0; round < 2000; ++round) {
    const int bins = 1 + static_cast<int>(engine() % 7);
    const auto n = static_cast<int64_t>(1 + engine() % 6);
    std::vector<double> before(n), after(n);
    long double signal = 0, noise = 0;
    for (int64_t i = 0; i < n; ++i) {
      before[i] = numbers[engine() % numbers.size()];
      after[i] = engine() % 3 == 0 ? before[i] : numbers[engine() % numbers.size()];
      const auto was = static_cast<long double>(before[i]);
      signal += was * was;
      noise += (was - after[i]) * (was - after[i]);
    }
    SCOPED_TRACE(testing::PrintToString(before) + " " + testing::PrintToString(after));
    const WeightFigures figures = Of(before, after, bins);
    for (const auto& [counts, values] :
         {std::pair(&figures.before, &before), std::pair(&figures.after, &after)}) {
      ASSERT_EQ(static_cast<int>(counts->size()), bins);
      ASSERT_EQ(std::accumulate(counts->begin(), counts->end(), int64_t{0}), n);
      // Each number lies in its bar, by extended precision, or in the neighbour's where they meet.
      std::vector<int64_t> expected(bins);
      const auto low = static_cast<long double>(figures.minimum);
      const auto span = static_cast<long double>(figures.maximum) - low;
      for (double value : *values) {
        const long double place = span > 0 ? (value - low) / span * bins : 0;
        ++expected[std::min<int64_t>(bins - 1, static_cast<int64_t>(place + 1e-12L))];
      }
      ASSERT_EQ(*counts, expected);
    }
    const auto sqnr = Sqnr(figures.signal, figures.noise);
    ASSERT_EQ(sqnr.has_value(), signal > 0 && noise > 0);
    if (!sqnr) continue;
    ASSERT_NEAR(*sqnr, static_cast<double>(10 * (std::log10(signal) - std::log10(noise))), 1e-9);
    const long double largest = kMax;
    if (noise < largest && noise > 1e-300L) {
      ASSERT_NEAR(figures.noise.value() / static_cast<double>(noise), 1, 1e-12);
    }
  }
}

TEST(SquareSumTest, AddsSumsOfAnyScale) {
  SquareSum total;
  total += {0, 5};
  EXPECT_EQ(total.value(), 0);
  total += {3, 0};
  total += {1, 2};  // 16
  EXPECT_EQ(total.value(), 19);
  total += {1, -1000};
  EXPECT_EQ(total.value(), 19);
  total += {1, 1000};
  EXPECT_EQ(total.value(), std::numeric_limits<double>::infinity());
  EXPECT_DOUBLE_EQ(*Sqnr(total, {1, 999}), 20 * std::log10(2.0));
}

}  // namespace
}  // namespace nni_compression::compression
