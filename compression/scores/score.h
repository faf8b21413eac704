// What a pruner ranks the weights of a layer by. A new score is a file in this folder and a line in
// scores.cc.
#ifndef NNI_COMPRESSION_COMPRESSION_SCORES_SCORE_H_
#define NNI_COMPRESSION_COMPRESSION_SCORES_SCORE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compression/options/options.h"
#include "compression/statistics/statistic.h"
#include "compression/tensors/weight.h"
#include "compression/types/buffer.h"
#include "compression/types/dtype.h"
#include "compression/types/layer.h"

namespace nni_compression::compression {

// One number for each weight of a layer, in C order; the smaller its magnitude, the earlier the
// weight is pruned. Ties go by the flat index.
struct Scores {
  DataType dtype = DataType::kFloat32;  // of a weight
  const void* data = nullptr;           // valid as long as the weight and `owned`
  Buffer owned = {};                    // empty if the weight itself is its score
};

// Immutable, hence thread-safe.
class Score {
 public:
  virtual ~Score() = default;

  // The scores of a weight, which may have elements that are not finite: a score that is the weight
  // itself has them, too, and any other one is asked only for weights without. `statistics` are
  // those of the layer so far; FAILED_PRECONDITION when one is missing.
  virtual absl::StatusOr<Scores> Of(const Layer& layer, const Weight& weight,
                                    const Statistics& statistics) const = 0;

  // Memory that it takes for an element, `owned` and what it needs on the way; 0: the weight itself
  // is its score.
  virtual int64_t bytes_per_element() const = 0;
};

// The same for filters, the slices of a weight along its channel axis. Immutable, hence
// thread-safe.
class FilterScore {
 public:
  virtual ~FilterScore() = default;

  // One number for each filter, in their order; the smallest go first. The weight has finite
  // elements only. FAILED_PRECONDITION when a statistic is missing.
  virtual absl::StatusOr<std::vector<double>> Of(const Layer& layer, const Weight& weight,
                                                 const Statistics& statistics) const = 0;

  // Memory that it takes for a layer: by default the numbers, and those of a statistic.
  virtual int64_t work_bytes(const Layer& layer) const {
    return 2 * layer.filters() * static_cast<int64_t>(sizeof(double));
  }
};

// A score's entry in the table.
struct ScoreInfo {
  std::string name;
  std::string formula;  // for people
  std::vector<OptionSpec> options;
  // Whether scores of different layers may be divided by what the layer has of them.
  bool can_normalize = false;
  // What it needs to know beyond the weight.
  std::vector<StatisticKind> statistics;
  // Of these, whether weights of one dimension need them, too.
  bool statistics_of_vectors = true;
  // Optional: what trainers apply to outputs before they reduce them to these.
  std::function<OutputActivation(const Options& options)> activation;
  // Optional: checks that the score can be had of this layer.
  std::function<absl::Status(const Layer& layer)> check_layer;
  // For structure `element` and for structure `filter`; null: not for that one.
  std::function<std::unique_ptr<const Score>(const Options& options)> create;
  std::function<std::unique_ptr<const FilterScore>(const Options& options)> create_for_filters;
};

// All scores, by name.
const std::vector<ScoreInfo>& AllScores();

// The score of that name; null: there is none.
const ScoreInfo* FindScore(absl::string_view name);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_SCORES_SCORE_H_
