#include "compression/statistics/kinds.h"

#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {
namespace {

using Shape = StatisticInfo::Shape;
using Merging = StatisticInfo::Merge;
using Kind = StatisticKind;

constexpr StatisticInfo kTable[] = {
    {Kind::kWeightGradient, "weight_gradient", Shape::kWeight, Merging::kSum, true},
    {Kind::kFilterTaylor, "filter_taylor", Shape::kOutputs, Merging::kSum, false},
    {Kind::kParameter, "parameter", Shape::kOutputs, Merging::kReplace, true},
    {Kind::kSquaredGradient, "squared_gradient", Shape::kOne, Merging::kSum, false},
    {Kind::kInputSquareSum, "input_square_sum", Shape::kInputs, Merging::kSum, false},
    {Kind::kInputSecondMoment, "input_second_moment", Shape::kInputPairs, Merging::kSum, true},
    {Kind::kInputAbsMax, "input_abs_max", Shape::kInputs, Merging::kMaximum, false},
    {Kind::kInputAbsSum, "input_abs_sum", Shape::kInputs, Merging::kSum, false},
    {Kind::kInputHistogram, "input_histogram", Shape::kBins, Merging::kSum, false},
    {Kind::kOutputHistogram, "output_histogram", Shape::kBins, Merging::kSum, false},
    {Kind::kOutputZeroCount, "output_zero_count", Shape::kOutputs, Merging::kSum, false},
    {Kind::kOutputSum, "output_sum", Shape::kOutputs, Merging::kSum, true},
    {Kind::kInputRange, "input_range", Shape::kRange, Merging::kRange, true},
    {Kind::kOutputRange, "output_range", Shape::kRange, Merging::kRange, true},
};

constexpr int64_t kMaxBins = 65536;

std::string ShapeText(absl::Span<const int64_t> shape) {
  // One that is given may have any number of dimensions.
  const bool fits = shape.size() <= kMaxDimensions;
  return absl::StrCat("[", absl::StrJoin(shape.first(fits ? shape.size() : kMaxDimensions), ", "),
                      fits ? "]" : ", ...]");
}

int64_t Triangle(int64_t n) { return n * (n + 1) / 2; }

}  // namespace

absl::Span<const StatisticInfo> AllStatistics() { return kTable; }

const StatisticInfo* FindStatistic(int number) {
  for (const StatisticInfo& info : kTable) {
    if (static_cast<int>(info.kind) == number) return &info;
  }
  return nullptr;
}

const StatisticInfo* FindStatistic(absl::string_view name) {
  for (const StatisticInfo& info : kTable) {
    if (info.name == name) return &info;
  }
  return nullptr;
}

absl::StatusOr<std::vector<int64_t>> PlannedShape(const StatisticInfo& info, const Layer& layer) {
  switch (info.shape) {
    case Shape::kWeight:
      return layer.shape;
    case Shape::kOne:
      return std::vector<int64_t>{1};
    case Shape::kOutputs:
      return std::vector<int64_t>{layer.filters()};
    case Shape::kBins:
      return std::vector<int64_t>{};
    case Shape::kRange:
      return std::vector<int64_t>{2};
    case Shape::kInputs:
    case Shape::kInputPairs:
      break;
  }
  const std::optional<int> axis = layer.input_axis();
  if (!axis) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", Quoted(layer.name), " has a weight of shape ",
                     ShapeText(layer.shape), ", without input channels, which ", info.name,
                     " is of: it must have at least two dimensions"));
  }
  const int64_t inputs = layer.shape[static_cast<size_t>(*axis)];
  if (info.shape == Shape::kInputs) return std::vector<int64_t>{inputs};
  return std::vector<int64_t>{inputs, inputs};
}

absl::Status CheckStatisticShape(const StatisticInfo& info, const Layer& layer,
                                 absl::Span<const int64_t> shape) {
  const auto invalid = [&](const auto&... allowed) {
    return absl::InvalidArgumentError(absl::StrCat(info.name, " of layer ", Quoted(layer.name),
                                                   " has shape ", ShapeText(shape), "; it must be ",
                                                   allowed...));
  };
  if (info.shape == Shape::kBins) {
    if (shape.size() == 1 && shape[0] >= 2 && shape[0] <= kMaxBins && shape[0] % 2 == 0) {
      return absl::OkStatus();
    }
    return invalid("[B] with an even number of bins in [2, ", kMaxBins, "]");
  }
  const absl::StatusOr<std::vector<int64_t>> planned = PlannedShape(info, layer);
  if (!planned.ok()) return planned.status();
  if (shape == absl::MakeConstSpan(*planned)) return absl::OkStatus();
  if (info.shape != Shape::kInputs && info.shape != Shape::kInputPairs) {
    return invalid(ShapeText(*planned));
  }
  const int64_t inputs = planned->front();
  std::vector<std::vector<int64_t>> allowed = {*planned};
  if (info.shape == Shape::kInputPairs) allowed.push_back({Triangle(inputs)});
  const int64_t outputs = layer.filters();
  std::vector<std::string> texts;
  for (const std::vector<int64_t>& one : allowed) {
    if (shape == absl::MakeConstSpan(one)) return absl::OkStatus();
    texts.push_back(ShapeText(one));
    if (shape.size() == one.size() + 1 && shape.subspan(1) == absl::MakeConstSpan(one) &&
        shape[0] >= 1 && outputs % shape[0] == 0) {
      return absl::OkStatus();
    }
  }
  return invalid(absl::StrJoin(texts, " or "), ", after the number of groups, if any, of the ",
                 outputs, " output channels");
}

}  // namespace nni_compression::compression
