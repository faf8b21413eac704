// Scope `global`: how many weights each layer loses when all layers share one threshold.
#ifndef NNI_COMPRESSION_COMPRESSION_SCOPES_GLOBAL_H_
#define NNI_COMPRESSION_COMPRESSION_SCOPES_GLOBAL_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "compression/kernels/parallel.h"
#include "compression/types/dtype.h"

namespace nni_compression::compression {

// What the scores x of a layer's kept weights are divided by before they are compared.
enum class Normalize {
  kNone,
  kMean,  // their mean
  kL2,    // the root of the sum of their squares
  // x_i^2 / (x_i^2 + the squares of all that rank after x_i): Lee et al., Layer-adaptive Sparsity
  // for the Magnitude-based Pruning, 2021. The largest score of a layer is 1.
  kLamp,
};

// "none", "mean", "l2", "lamp".
const std::vector<std::string>& NormalizeNames();
std::optional<Normalize> NormalizeFromName(absl::string_view name);

// What no layer loses less of, and more of, than.
struct SparsityLimits {
  double least = 0;
  double most = 1;
};

// A layer of the rule.
struct RankedLayer {
  DataType dtype = DataType::kFloat32;  // of the scores
  const void* scores = nullptr;         // ranked by magnitude, then index
  int64_t elements = 0;                 // at least 1
  const uint8_t* previous = nullptr;    // a packed mask; what it removed ranks first; null: nothing
  int64_t previously_pruned = 0;

  // The result is in [at_least, at_most], which are in [previously_pruned, elements].
  int64_t at_least = 0;
  int64_t at_most = 0;
};

struct PruneCounts {
  std::vector<int64_t> counts;       // by layer; empty if there is `not_finite`
  std::optional<size_t> not_finite;  // the first layer with a score that is not finite
};

// How many each layer prunes so that they are `total` together, or as near as the limits allow: the
// smallest normalized scores, ties by the order of layers, then by index. All arithmetic is
// float64, of zero by zero is zero. Exact, and the same for any number of threads.
//
// No score is copied or sorted. Passes over the layers count their scores in ranges; the ranges
// that may contain the threshold are divided further until each has one value.
PruneCounts CountGlobally(absl::Span<const RankedLayer> layers, int64_t total, Normalize normalize,
                          int64_t grain = kGrain);

// Bytes of memory that CountGlobally needs at most for a layer.
int64_t GlobalWorkBytes(DataType dtype, int64_t elements);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_SCOPES_GLOBAL_H_
