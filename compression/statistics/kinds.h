// The kinds of statistics that a trainer may send of a layer.
#ifndef NNI_COMPRESSION_COMPRESSION_STATISTICS_KINDS_H_
#define NNI_COMPRESSION_COMPRESSION_STATISTICS_KINDS_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "compression/types/layer.h"

namespace nni_compression::compression {

// With the numbers of the wire; its StatisticKind says what each is.
enum class StatisticKind : uint8_t {
  kWeightGradient = 1,
  kFilterTaylor,
  kParameter,
  kSquaredGradient,
  kInputSquareSum,
  kInputSecondMoment,
  kInputAbsMax,
  kInputAbsSum,
  kInputHistogram,
  kOutputHistogram,
  kOutputZeroCount,
  kOutputSum,
  kInputRange,
  kOutputRange,
};

// What trainers apply to a layer's outputs before they reduce them to kOutputZeroCount and
// kOutputSum. With the numbers of the wire's Activation.
enum class OutputActivation : uint8_t { kNone, kRelu, kRelu6 };

// A line of the table.
struct StatisticInfo {
  // F: output channels, I: input channels of the weight.
  enum class Shape { kWeight, kOne, kOutputs, kInputs, kInputPairs, kBins, kRange };
  // kRange: the smaller of the first numbers, the larger of the second ones.
  enum class Merge { kSum, kMaximum, kReplace, kRange };

  StatisticKind kind;
  absl::string_view name;  // "weight_gradient"
  Shape shape;
  Merge merge;
  bool has_negative;  // whether numbers may be negative
};

// In the order of their numbers.
absl::Span<const StatisticInfo> AllStatistics();

// Null for a number that is not a kind, or a name that none has.
const StatisticInfo* FindStatistic(int number);
const StatisticInfo* FindStatistic(absl::string_view name);

// The shape that a plan declares for the layer; empty for a histogram. INVALID_ARGUMENT when the
// layer has none.
absl::StatusOr<std::vector<int64_t>> PlannedShape(const StatisticInfo& info, const Layer& layer);

// INVALID_ARGUMENT, with the shapes that are allowed, unless a part may have this shape.
absl::Status CheckStatisticShape(const StatisticInfo& info, const Layer& layer,
                                 absl::Span<const int64_t> shape);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_STATISTICS_KINDS_H_
