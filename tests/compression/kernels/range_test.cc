#include "compression/kernels/range.h"

#include <ATen/Parallel.h>

#include <cmath>
#include <limits>

#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using testing::ElementsAre;
using testing::Eq;

TEST(ChannelsTest, SplitsAShapeAtTheAxis) {
  const Channels middle = Channels::Of({2, 3, 4, 5}, 1);
  EXPECT_EQ(middle.outer, 2);
  EXPECT_EQ(middle.channels, 3);
  EXPECT_EQ(middle.inner, 20);
  EXPECT_EQ(middle.elements(), 120);
  const Channels whole = Channels::Of({2, 3}, std::nullopt);
  EXPECT_EQ(whole.outer, 1);
  EXPECT_EQ(whole.channels, 1);
  EXPECT_EQ(whole.inner, 6);
}

TEST(FindRangeTest, FindsTheRangeOfATensor) {
  const auto range = FindRange(DataType::kFloat32, Values({3, -2, 5, 1}).data_ptr(),
                               Channels::Of({4}, std::nullopt));
  ASSERT_TRUE(range);
  EXPECT_THAT(range->minimum, ElementsAre(-2));
  EXPECT_THAT(range->maximum, ElementsAre(5));
}

TEST(FindRangeTest, FindsTheRangeOfEachChannelOnAnyAxis) {
  const at::Tensor weight = Values({1, 2, 3, -4, -5, -6});  // [2, 3]
  const auto first = FindRange(DataType::kFloat32, weight.data_ptr(), Channels::Of({2, 3}, 0));
  EXPECT_THAT(first->minimum, ElementsAre(1, -6));
  EXPECT_THAT(first->maximum, ElementsAre(3, -4));
  const auto last = FindRange(DataType::kFloat32, weight.data_ptr(), Channels::Of({2, 3}, 1));
  EXPECT_THAT(last->minimum, ElementsAre(-4, -5, -6));
  EXPECT_THAT(last->maximum, ElementsAre(1, 2, 3));
}

TEST(FindRangeTest, AgreesWithAPlainLoopOnManyShapesAndTypes) {
  for (DataType dtype :
       {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16, DataType::kFloat64}) {
    for (int axis : {0, 1, 2}) {
      const std::vector<int64_t> shape = {3, 37, 21};
      const at::Tensor weight = Random(shape, 5, dtype);
      const at::Tensor wide = weight.to(at::kFloat);
      const auto range = FindRange(dtype, weight.data_ptr(), Channels::Of(shape, axis));
      ASSERT_TRUE(range);
      for (int64_t c = 0; c < shape[axis]; ++c) {
        const at::Tensor slice = wide.select(axis, c);
        EXPECT_EQ(range->minimum[c], slice.min().item<float>());
        EXPECT_EQ(range->maximum[c], slice.max().item<float>());
      }
    }
  }
}

TEST(FindRangeTest, FindsNothingWhereAWeightIsNotFinite) {
  for (double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    for (int64_t position : {0, 15, 16, 99}) {
      std::vector<double> values(100, 1.0);
      values[position] = bad;
      const at::Tensor weight = Values(values);
      EXPECT_FALSE(FindRange(DataType::kFloat32, weight.data_ptr(), Channels::Of({100}, {})));
      EXPECT_FALSE(FindRange(DataType::kFloat32, weight.data_ptr(), Channels::Of({10, 10}, 1)));
    }
  }
}

TEST(FindRangeTest, FindsNothingWhereAFloat64IsTooLargeForFloat32) {
  const at::Tensor weight = Values({1, 1e39}, DataType::kFloat64);
  EXPECT_FALSE(FindRange(DataType::kFloat64, weight.data_ptr(), Channels::Of({2}, {})));
}

TEST(FindRangeTest, GivesZerosOneSign) {
  for (const auto& values : {std::vector<double>{0.0, -0.0}, std::vector<double>{-0.0, 0.0}}) {
    const auto range =
        FindRange(DataType::kFloat32, Values(values).data_ptr(), Channels::Of({2}, {}));
    EXPECT_FALSE(std::signbit(range->minimum[0]));
    EXPECT_FALSE(std::signbit(range->maximum[0]));
  }
}

TEST(FindRangeTest, GivesTheSameBitsOnAnyNumberOfThreads) {
  const int before = at::get_num_threads();
  const std::vector<int64_t> shape = {8, (int64_t{1} << 20) + 3};
  const at::Tensor weight = Random(shape, 6);
  std::vector<Range> ranges;
  for (int threads : {1, 2, 8}) {
    at::set_num_threads(threads);
    for (std::optional<int> axis : {std::optional<int>(), std::optional<int>(0)}) {
      ranges.push_back(
          *FindRange(DataType::kFloat32, weight.data_ptr(), Channels::Of(shape, axis)));
    }
  }
  at::set_num_threads(before);
  for (size_t i = 2; i < ranges.size(); ++i) {
    EXPECT_THAT(ranges[i].minimum, Eq(ranges[i % 2].minimum));
    EXPECT_THAT(ranges[i].maximum, Eq(ranges[i % 2].maximum));
  }
}

}  // namespace
}  // namespace nni_compression::compression
