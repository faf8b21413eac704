// What a session keeps of a statistic of a layer.
#ifndef NNI_COMPRESSION_COMPRESSION_STATISTICS_STATISTIC_H_
#define NNI_COMPRESSION_COMPRESSION_STATISTICS_STATISTIC_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compression/statistics/kinds.h"
#include "compression/types/buffer.h"
#include "compression/types/dtype.h"
#include "compression/types/layer.h"

namespace nni_compression::compression {

constexpr int kMaxSources = 64;
// As the largest epoch: all integers up to here are numbers in double.
constexpr int64_t kMaxSamples = int64_t{1} << 53;
constexpr uint64_t kMaxSequence = uint64_t{1} << 53;

// FAILED_PRECONDITION for a layer that has no part yet of what `user` needs, such as "score
// taylor".
absl::Status MissingStatistic(const StatisticInfo& info, const Layer& layer,
                              absl::string_view user);

// One part of a statistic, as a source sends it.
struct StatisticPart {
  StatisticKind kind = StatisticKind::kWeightGradient;
  int64_t source = 0;     // in [0, kMaxSources)
  uint64_t sequence = 0;  // in [1, kMaxSequence]; ascending for a source
  int64_t count = 0;      // samples that it is of, in [1, kMaxSamples]
  int exponent = 0;       // of the width of a histogram's bins, in [-126, 127]; 0 otherwise
  std::string digest;     // SHA-256 of dtype, shape and bytes
  DataType dtype = DataType::kFloat32;  // or kFloat64
  std::vector<int64_t> shape;           // a valid one
  Buffer bytes;
};

// All parts of one source.
struct SourceTotal {
  uint64_t sequence = 0;   // of the last part
  std::string digest;      // its
  int64_t last_count = 0;  // its
  int last_exponent = 0;   // its
  int64_t count = 0;       // samples of all parts
  int exponent = 0;        // of `values`, if a histogram
  std::vector<double> values;
};

// Immutable; a new part makes a new one, which shares the totals of the other sources.
struct Statistic {
  std::vector<int64_t> shape;
  std::map<int, std::shared_ptr<const SourceTotal>> sources;  // in their order; at least one

  // Samples of all sources; at most kMaxSamples for each.
  int64_t count() const;
  int64_t elements() const;
  // Memory that it takes.
  int64_t bytes() const;
};

// Of a layer, by kind.
using Statistics = std::map<StatisticKind, std::shared_ptr<const Statistic>>;

struct AddedPart {
  std::shared_ptr<const Statistic> statistic;
  bool known = false;  // a retry: `statistic` is the one before
};

// Adds a part to what there is, `before`, or null. INVALID_ARGUMENT, naming the field, the value
// and the allowed range, for a part that is not valid, or whose sequence was used for another one
// or is lower than the last.
absl::StatusOr<AddedPart> AddPart(const StatisticInfo& info, const Layer& layer,
                                  const std::shared_ptr<const Statistic>& before,
                                  const StatisticPart& part);

// A statistic over all sources, merged in their order, so that it does not depend on who was first.
struct StatisticTotal {
  int64_t count = 0;
  int exponent = 0;  // of a histogram
  std::vector<double> values;
};
StatisticTotal Merge(const StatisticInfo& info, const Statistic& statistic);

// The merged statistic of a layer; MissingStatistic without one.
absl::StatusOr<StatisticTotal> TotalOf(StatisticKind kind, const Layer& layer,
                                       const Statistics& statistics, absl::string_view user);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_STATISTICS_STATISTIC_H_
