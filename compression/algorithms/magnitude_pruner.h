// What the pruners that remove the smallest magnitudes share.
#ifndef NNI_COMPRESSION_COMPRESSION_ALGORITHMS_MAGNITUDE_PRUNER_H_
#define NNI_COMPRESSION_COMPRESSION_ALGORITHMS_MAGNITUDE_PRUNER_H_

#include <cstdint>
#include <optional>

#include "absl/status/statusor.h"
#include "compression/algorithms/algorithm.h"

namespace nni_compression::compression {

// How many of n weights a sparsity prunes: trunc(n * sparsity), in double.
int64_t CountToPrune(int64_t elements, double sparsity);

// A pruner that, at any time, wants a certain share of the smallest weights pruned; a weight that
// was pruned stays so. It is stale when it would prune more than is pruned now, so that nothing has
// to be remembered but the mask.
class MagnitudePruner : public Pruner {
 public:
  bool IsStale(const Layer& layer, const LayerState& state, Clock clock) const override;
  absl::StatusOr<Mask> CalcMask(const Layer& layer, const Weight& weight, LayerState& state,
                                Clock clock) const override;

 protected:
  // The share to prune, should the mask be renewed now; nothing: it is not to be renewed now.
  virtual std::optional<double> SparsityNow(Clock clock) const = 0;
};

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_ALGORITHMS_MAGNITUDE_PRUNER_H_
