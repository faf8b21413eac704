#include "compression/statistics/statistic.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>

#include <cmath>

#include "absl/strings/str_cat.h"
#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

using Kind = StatisticKind;

// A statistic of a layer that takes parts.
class Taken {
 public:
  explicit Taken(Kind kind, const std::vector<int64_t>& shape = {2, 3})
      : info_(*FindStatistic(static_cast<int>(kind))), layer_(MakeLayer("fc", shape)) {
    layer_.elements = shape[0] * shape[1];
  }

  // Whether the part was known.
  absl::StatusOr<bool> Add(StatisticPart part) {
    auto added = AddPart(info_, layer_, statistic_, part);
    if (!added.ok()) return added.status();
    statistic_ = added->statistic;
    return added->known;
  }
  absl::StatusOr<bool> Add(const at::Tensor& values, uint64_t sequence, int64_t source = 0) {
    return Add(PartOf(info_.kind, values, sequence, source));
  }
  absl::StatusOr<bool> Add(std::vector<double> values, uint64_t sequence, int64_t source = 0) {
    return Add(Values(std::move(values)), sequence, source);
  }

  StatisticTotal total() const { return Merge(info_, *statistic_); }
  const std::shared_ptr<const Statistic>& statistic() const { return statistic_; }

 private:
  const StatisticInfo& info_;
  Layer layer_;
  std::shared_ptr<const Statistic> statistic_;
};

TEST(StatisticTest, SumsAreMadeInDoubleAndDoNotDependOnWhoWasFirst) {
  Taken one(Kind::kInputAbsSum), other(Kind::kInputAbsSum);
  const std::vector<double> large = {1e8, 0, 1}, small = {1, 2, 1e-8}, third = {0.1f, 0.2f, 0.3f};
  ASSERT_THAT(one.Add(large, 1, 0), IsOk());
  ASSERT_THAT(one.Add(third, 7, 5), IsOk());
  ASSERT_THAT(one.Add(small, 2, 0), IsOk());
  ASSERT_THAT(other.Add(third, 7, 5), IsOk());
  ASSERT_THAT(other.Add(large, 1, 0), IsOk());
  ASSERT_THAT(other.Add(small, 2, 0), IsOk());
  EXPECT_EQ(one.total().values, other.total().values);
  EXPECT_EQ(one.total().values[0], (1e8 + 1.0) + double{0.1f});
  EXPECT_EQ(one.total().count, 3);
  EXPECT_EQ(one.statistic()->count(), 3);
}

TEST(StatisticTest, ARetryCountsOnce) {
  Taken taken(Kind::kInputAbsSum);
  EXPECT_FALSE(*taken.Add({1, 2, 3}, 4));
  const auto before = taken.statistic();
  EXPECT_TRUE(*taken.Add({1, 2, 3}, 4));
  EXPECT_EQ(taken.statistic(), before);
  StatisticPart other = PartOf(Kind::kInputAbsSum, Values({1, 2, 3}), 4);
  other.count = 2;
  for (const StatisticPart& part : {other, PartOf(Kind::kInputAbsSum, Values({1, 2, 4}), 4)}) {
    EXPECT_THAT(taken.Add(part), IsInvalid(HasSubstr("has sequence 4 of source 0, which another")));
  }
  EXPECT_THAT(taken.Add({1, 2, 3}, 3),
              IsInvalid(AllOf(HasSubstr("input_abs_sum of layer \"fc\" has sequence 3 after 4 of"),
                              HasSubstr("at least 4"))));
  EXPECT_EQ(taken.statistic(), before);
  EXPECT_FALSE(*taken.Add({1, 2, 3}, 3, 1)) << "another source has its own sequence";
  EXPECT_FALSE(*taken.Add({1, 2, 3}, 9)) << "there may be gaps";
  EXPECT_THAT(taken.total().values, ElementsAre(3, 6, 9));
}

TEST(StatisticTest, KindsMergeAsTheySay) {
  Taken maximum(Kind::kInputAbsMax), replaced(Kind::kParameter), range(Kind::kInputRange);
  ASSERT_THAT(maximum.Add({1, 5, 0}, 1), IsOk());
  ASSERT_THAT(maximum.Add({2, 1, 0}, 2), IsOk());
  ASSERT_THAT(maximum.Add({0, 0, 3}, 1, 63), IsOk());
  EXPECT_THAT(maximum.total().values, ElementsAre(2, 5, 3));
  ASSERT_THAT(replaced.Add({1, -1}, 1), IsOk());
  ASSERT_THAT(replaced.Add({-2, 3}, 2), IsOk());
  EXPECT_THAT(replaced.total().values, ElementsAre(-2, 3));
  ASSERT_THAT(range.Add({-1, 2}, 1), IsOk());
  ASSERT_THAT(range.Add({0, 3}, 2), IsOk());
  ASSERT_THAT(range.Add({-4, 1}, 1, 1), IsOk());
  EXPECT_THAT(range.total().values, ElementsAre(-4, 3));
}

TEST(StatisticTest, HistogramsOfOtherWidthsAreAddedAtTheLargest) {
  Taken taken(Kind::kInputHistogram);
  // Bins of width 1: [-2, -1), [-1, 0), [0, 1), [1, 2).
  ASSERT_THAT(taken.Add({1, 2, 3, 4}, 1), IsOk());
  StatisticPart wide = PartOf(Kind::kInputHistogram, Values({10, 20, 30, 40}), 2);
  wide.exponent = 1;
  ASSERT_THAT(taken.Add(wide), IsOk());
  EXPECT_EQ(taken.total().exponent, 1);
  EXPECT_THAT(taken.total().values, ElementsAre(10, 23, 37, 40));
  StatisticPart narrow = PartOf(Kind::kInputHistogram, Values({1, 0, 0, 1}), 1, 1);
  narrow.exponent = -126;
  ASSERT_THAT(taken.Add(narrow), IsOk());
  EXPECT_THAT(taken.total().values, ElementsAre(10, 24, 38, 40));
  EXPECT_THAT(taken.Add({1, 2}, 3),
              IsInvalid(HasSubstr("it must be that of the parts before, [4]")));
}

TEST(StatisticTest, RefusesWhatIsNoPart) {
  const auto refused = [](Kind kind, const auto& change, const std::string& message) {
    Taken taken(kind);
    const Layer layer = MakeLayer("fc", {2, 3});
    const StatisticInfo& info = *FindStatistic(static_cast<int>(kind));
    std::vector<int64_t> shape = PlannedShape(info, layer).value();
    if (shape.empty()) shape = {4};
    StatisticPart part = PartOf(kind, at::ones(shape));
    change(part);
    EXPECT_THAT(taken.Add(part), IsInvalid(HasSubstr(message)));
    EXPECT_EQ(taken.statistic(), nullptr);
  };
  const auto set = [](StatisticPart& part, int64_t i, float value) {
    reinterpret_cast<float*>(part.bytes.data())[i] = value;
  };
  for (const int64_t source : {-1, 64}) {
    refused(
        Kind::kInputAbsSum, [&](StatisticPart& part) { part.source = source; },
        absl::StrCat("has source ", source, "; it must be in [0, 63]"));
  }
  for (const uint64_t sequence : {uint64_t{0}, kMaxSequence + 1}) {
    refused(
        Kind::kInputAbsSum, [&](StatisticPart& part) { part.sequence = sequence; },
        absl::StrCat("has sequence ", sequence, "; it must be in [1, 9007199254740992]"));
  }
  for (const int64_t count : {int64_t{0}, kMaxSamples + 1}) {
    refused(
        Kind::kInputAbsSum, [&](StatisticPart& part) { part.count = count; },
        absl::StrCat("has count ", count, "; it must be in [1, 9007199254740992]"));
  }
  refused(
      Kind::kInputAbsSum, [](StatisticPart& part) { part.exponent = 1; },
      "has exponent 1; it must be 0, as it is not a histogram");
  refused(
      Kind::kOutputHistogram, [](StatisticPart& part) { part.exponent = 128; },
      "has exponent 128; it must be in [-126, 127]");
  refused(
      Kind::kInputAbsSum, [](StatisticPart& part) { part.shape = {4}; }, "has shape [4]");
  for (const Kind kind : {Kind::kInputSquareSum, Kind::kInputAbsMax, Kind::kSquaredGradient,
                          Kind::kFilterTaylor, Kind::kOutputZeroCount, Kind::kInputHistogram}) {
    refused(
        kind, [&](StatisticPart& part) { set(part, 0, -0.5f); },
        "has -0.5 at flat index 0; it must be at least 0");
  }
  for (const StatisticInfo& info : AllStatistics()) {
    for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
      refused(
          info.kind, [&](StatisticPart& part) { set(part, 0, bad); }, "at flat index 0");
    }
  }
  refused(
      Kind::kInputRange, [&](StatisticPart& part) { set(part, 0, 2); },
      "is [2, 1]; the first number must not be above the second");
  for (const int64_t diagonal : {0, 4, 8}) {
    refused(
        Kind::kInputSecondMoment, [&](StatisticPart& part) { set(part, diagonal, -1); },
        absl::StrCat("at flat index ", diagonal, "; it is on the diagonal"));
  }
  refused(
      Kind::kInputSecondMoment, [&](StatisticPart& part) { set(part, 7, 0.5); },
      "has 0.5 at flat index 7; it must be as on the other side of the diagonal, where it is 1");
}

TEST(StatisticTest, AWholeSecondMomentIsSymmetricInEveryGroupButForRounding) {
  const at::Tensor one = at::tensor({4., 1.0005, 1., 9.}, at::kDouble).view({1, 2, 2});
  const at::Tensor other = at::tensor({4., 1., 1.01, 9.}, at::kDouble).view({1, 2, 2});
  Taken taken(Kind::kInputSecondMoment, {4, 2});
  EXPECT_FALSE(*taken.Add(at::cat({one, one}), 1));
  EXPECT_THAT(taken.Add(at::cat({one, other}), 2),
              IsInvalid(HasSubstr("at flat index 6; it must")));
}

TEST(StatisticTest, TheDiagonalOfATriangleIsFound) {
  for (const int64_t i : {0, 1, 2, 3, 4, 5}) {
    for (const bool groups : {false, true}) {
      Taken taken(Kind::kInputSecondMoment);
      at::Tensor packed = at::ones({6});
      packed[i] = -1;
      const bool diagonal = i == 0 || i == 2 || i == 5;
      const at::Tensor part = groups ? at::stack({at::ones({6}), packed}) : packed;
      EXPECT_EQ(taken.Add(part, 1).ok(), !diagonal) << i;
    }
  }
}

TEST(StatisticTest, SumsThatLeaveTheRangeAreRefused) {
  Taken taken(Kind::kOutputSum);
  const at::Tensor huge = Values({1.7e308, 0}, DataType::kFloat64);
  ASSERT_THAT(taken.Add(huge, 1), IsOk());
  EXPECT_THAT(taken.Add(huge, 2), IsInvalid(HasSubstr("must be finite, added up")));
  StatisticPart many = PartOf(Kind::kOutputSum, Values({0, 0}), 2);
  many.count = kMaxSamples;
  EXPECT_THAT(taken.Add(many), IsInvalid(HasSubstr("with the parts before")));
  EXPECT_EQ(taken.total().values[0], 1.7e308);
}

}  // namespace
}  // namespace nni_compression::compression
