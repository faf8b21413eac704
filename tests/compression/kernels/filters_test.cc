#include "compression/kernels/filters.h"

#include <ATen/Parallel.h>

#include <cmath>

#include "compression/kernels/isa.h"
#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using testing::ElementsAre;

// The filter's weights, in C order.
std::vector<double> FilterOf(const at::Tensor& weight, int axis, int64_t filter) {
  const at::Tensor values = weight.select(axis, filter).to(at::kDouble).flatten().contiguous();
  const double* const begin = values.data_ptr<double>();
  return {begin, begin + values.numel()};
}

std::vector<double> PlainDistances(const at::Tensor& weight, int axis) {
  std::vector<double> sums;
  for (int64_t i = 0; i < weight.size(axis); ++i) {
    double sum = 0;
    const std::vector<double> one = FilterOf(weight, axis, i);
    for (int64_t j = 0; j < weight.size(axis); ++j) {
      const std::vector<double> other = FilterOf(weight, axis, j);
      double square = 0;
      for (size_t k = 0; k < one.size(); ++k) square += (one[k] - other[k]) * (one[k] - other[k]);
      sum += std::sqrt(square);
    }
    sums.push_back(sum);
  }
  return sums;
}

struct Case {
  std::vector<int64_t> shape;
  int axis;
};

const Case kCases[] = {{{1, 1}, 0},     {{5, 7}, 0},        {{7, 5}, 1},        {{33, 16}, 0},
                       {{70, 3, 3}, 0}, {{4, 70, 3, 3}, 1}, {{3, 3, 8, 65}, 3}, {{9}, 0}};

TEST(FiltersTest, SumsAreThoseOfPlainLoops) {
  for (const DataType dtype :
       {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16, DataType::kFloat64}) {
    for (const Case& one : kCases) {
      const at::Tensor weight = Random(one.shape, 3, dtype);
      const Channels channels = Channels::Of(one.shape, one.axis);
      const std::vector<double> sums = FilterAbsSums(dtype, weight.data_ptr(), channels);
      const std::vector<double> norms = FilterNorms(dtype, weight.data_ptr(), channels);
      ASSERT_EQ(sums.size(), static_cast<size_t>(one.shape[one.axis]));
      for (size_t f = 0; f < sums.size(); ++f) {
        double sum = 0;
        double square = 0;
        for (const double w : FilterOf(weight, one.axis, static_cast<int64_t>(f))) {
          sum += std::abs(w);
          square += w * w;
        }
        EXPECT_NEAR(sums[f], sum, 1e-12 * sum);
        EXPECT_NEAR(norms[f], std::sqrt(square), 1e-12 * std::sqrt(square));
      }
    }
  }
}

TEST(FiltersTest, DistancesAreThoseOfPlainLoops) {
  for (const DataType dtype :
       {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16, DataType::kFloat64}) {
    for (const Case& one : kCases) {
      const at::Tensor weight = Random(one.shape, 4, dtype);
      const std::vector<double> sums =
          FilterDistanceSums(dtype, weight.data_ptr(), Channels::Of(one.shape, one.axis));
      const std::vector<double> expected = PlainDistances(weight, one.axis);
      ASSERT_EQ(sums.size(), expected.size());
      for (size_t f = 0; f < sums.size(); ++f) {
        EXPECT_NEAR(sums[f], expected[f], 1e-6 * expected[f]) << f;
      }
    }
  }
}

TEST(FiltersTest, DistancesAreTheSameOnAnyNumberOfThreadsAndInstructionSet) {
  const at::Tensor weight = Random({150, 3000}, 5);
  const Channels channels = Channels::Of({150, 3000}, 0);
  const auto compute = [&] {
    return FilterDistanceSums(DataType::kFloat32, weight.data_ptr(), channels);
  };
  const int threads = at::get_num_threads();
  const std::vector<double> expected = compute();
  for (const Isa isa : SupportedIsas()) {
    SetIsaForTesting(isa);
    for (const int count : {1, 2, 5}) {
      at::set_num_threads(count);
      EXPECT_EQ(compute(), expected) << IsaName(isa) << " " << count;
    }
  }
  SetIsaForTesting(std::nullopt);
  at::set_num_threads(threads);
}

TEST(FiltersTest, SmallDistancesOfLargeFiltersAreNotLost) {
  // From products, in float32, these would be noise or zero.
  const at::Tensor one = Random({1, 100}, 6, DataType::kFloat32, 1000);
  const at::Tensor weight = one.repeat({3, 1});
  weight.data_ptr<float>()[100 + 7] += 0.5f;
  weight.data_ptr<float>()[200 + 9] += 1;
  const double farthest = std::sqrt(1.25);
  const std::vector<double> sums =
      FilterDistanceSums(DataType::kFloat32, weight.data_ptr(), Channels::Of({3, 100}, 0));
  EXPECT_NEAR(sums[0], 1.5, 1e-3);
  EXPECT_NEAR(sums[1], 0.5 + farthest, 1e-3);
  EXPECT_NEAR(sums[2], 1 + farthest, 1e-3);
}

TEST(FiltersTest, NormsHaveAnyMagnitude) {
  for (const double factor : {1e-300, 1e-170, 1e170, 1e300}) {
    const at::Tensor weight =
        Values({3 * factor, 4 * factor, 0, -factor}, DataType::kFloat64, {2, 2});
    const std::vector<double> norms =
        FilterNorms(DataType::kFloat64, weight.data_ptr(), Channels::Of({2, 2}, 0));
    EXPECT_NEAR(norms[0] / factor, 5, 1e-12);
    EXPECT_NEAR(norms[1] / factor, 1, 1e-12);
  }
}

TEST(FiltersTest, DistancesHaveAnyMagnitude) {
  const std::vector<double> points = {0, 0, 3, 4, 6, 8};
  for (const double factor : {1.0, 1e-300, 1e300, 1e-30, 1e30}) {
    std::vector<double> scaled = points;
    for (double& value : scaled) value *= factor;
    const at::Tensor weight = Values(scaled, DataType::kFloat64, {3, 2});
    const std::vector<double> sums =
        FilterDistanceSums(DataType::kFloat64, weight.data_ptr(), Channels::Of({3, 2}, 0));
    EXPECT_NEAR(sums[0], 15 * factor, 1e-6 * 15 * factor);
    EXPECT_NEAR(sums[1], 10 * factor, 1e-6 * 10 * factor);
    EXPECT_NEAR(sums[2], 15 * factor, 1e-6 * 15 * factor);
  }
  const at::Tensor zeros = Values({0, 0, 0, 0, 0, 0});
  EXPECT_THAT(FilterDistanceSums(DataType::kFloat32, zeros.data_ptr(), Channels::Of({3, 2}, 0)),
              ElementsAre(0, 0, 0));
}

}  // namespace
}  // namespace nni_compression::compression
