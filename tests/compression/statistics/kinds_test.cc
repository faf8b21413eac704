#include "compression/statistics/kinds.h"

#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

Layer Bound(std::vector<int64_t> shape, int channel_axis) {
  Layer layer = MakeLayer("fc", std::move(shape));
  layer.channel_axis = channel_axis;
  return layer;
}

std::vector<int64_t> Planned(absl::string_view name, const Layer& layer) {
  return PlannedShape(*FindStatistic(name), layer).value();
}

TEST(StatisticKindsTest, ShapesFollowTheLayer) {
  const Layer convolution = Bound({8, 4, 3, 3}, 0);
  EXPECT_THAT(Planned("weight_gradient", convolution), ElementsAre(8, 4, 3, 3));
  EXPECT_THAT(Planned("squared_gradient", convolution), ElementsAre(1));
  EXPECT_THAT(Planned("filter_taylor", convolution), ElementsAre(8));
  EXPECT_THAT(Planned("input_square_sum", convolution), ElementsAre(4));
  EXPECT_THAT(Planned("input_second_moment", convolution), ElementsAre(4, 4));
  EXPECT_THAT(Planned("output_range", convolution), ElementsAre(2));
  EXPECT_THAT(Planned("input_histogram", convolution), IsEmpty());
  const Layer keras = Bound({3, 3, 4, 8}, 3);
  EXPECT_THAT(Planned("output_sum", keras), ElementsAre(8));
  EXPECT_THAT(Planned("input_abs_max", keras), ElementsAre(4));
  const Layer transposed = Bound({4, 8, 3, 3}, 1);
  EXPECT_THAT(Planned("output_sum", transposed), ElementsAre(8));
  EXPECT_THAT(Planned("input_abs_max", transposed), ElementsAre(4));
  EXPECT_THAT(PlannedShape(*FindStatistic("input_abs_sum"), Bound({8}, 0)),
              IsInvalid(HasSubstr("layer \"fc\" has a weight of shape [8], without input")));
}

TEST(StatisticKindsTest, AllowsGroupsTrianglesAndBins) {
  const Layer layer = Bound({8, 4, 3, 3}, 0);
  const auto check = [&](absl::string_view name, std::vector<int64_t> shape) {
    return CheckStatisticShape(*FindStatistic(name), layer, shape);
  };
  for (const int64_t groups : {1, 2, 8}) {
    EXPECT_THAT(check("input_square_sum", {groups, 4}), IsOk());
    EXPECT_THAT(check("input_second_moment", {groups, 4, 4}), IsOk());
    EXPECT_THAT(check("input_second_moment", {groups, 10}), IsOk());
  }
  EXPECT_THAT(check("input_second_moment", {10}), IsOk());
  EXPECT_THAT(check("input_square_sum", {3, 4}),
              IsInvalid(HasSubstr("has shape [3, 4]; it must be [4], after the number of groups, "
                                  "if any, of the 8 output channels")));
  EXPECT_THAT(check("input_second_moment", {16}), IsInvalid(HasSubstr("[4, 4] or [10]")));
  EXPECT_THAT(check("filter_taylor", {4}), IsInvalid(HasSubstr("it must be [8]")));
  EXPECT_THAT(check("weight_gradient", {8, 36}), IsInvalid(HasSubstr("[8, 4, 3, 3]")));
  EXPECT_THAT(check("output_range", {}), IsInvalid(HasSubstr("has shape []; it must be [2]")));
  EXPECT_THAT(check("input_histogram", {65536}), IsOk());
  for (const int64_t bins : {0, 1, 3, 65538}) {
    EXPECT_THAT(check("output_histogram", {bins}), IsInvalid(HasSubstr("in [2, 65536]")));
  }
}

TEST(StatisticKindsTest, NamesAndNumbersAreUnique) {
  for (const StatisticInfo& info : AllStatistics()) {
    EXPECT_EQ(FindStatistic(info.name), &info);
    EXPECT_EQ(FindStatistic(static_cast<int>(info.kind)), &info);
  }
  EXPECT_EQ(FindStatistic(0), nullptr);
  EXPECT_EQ(FindStatistic(static_cast<int>(AllStatistics().size()) + 1), nullptr);
}

}  // namespace
}  // namespace nni_compression::compression
