#include "compression/algorithms/magnitude_pruner.h"

#include <algorithm>
#include <utility>

#include "compression/kernels/finite.h"
#include "compression/kernels/select.h"

namespace nni_compression::compression {

int64_t CountToPrune(int64_t elements, double sparsity) {
  const auto count = static_cast<int64_t>(static_cast<double>(elements) * sparsity);
  return std::clamp<int64_t>(count, 0, elements);
}

bool MagnitudePruner::IsStale(const Layer& layer, const LayerState& state, Clock clock) const {
  const std::optional<double> sparsity = SparsityNow(clock);
  return sparsity && CountToPrune(layer.elements, *sparsity) > state.pruned();
}

absl::StatusOr<Mask> MagnitudePruner::CalcMask(const Layer& layer, const Weight& weight,
                                               LayerState& state, Clock clock) const {
  const std::optional<double> sparsity = SparsityNow(clock);
  SelectArguments arguments;
  arguments.dtype = layer.dtype;
  arguments.weight = weight.values.data_ptr();
  arguments.elements = layer.elements;
  arguments.previously_pruned = state.pruned();
  if (state.mask) arguments.previous = state.mask->bits().data();
  arguments.prune =
      std::max(state.pruned(), sparsity ? CountToPrune(layer.elements, *sparsity) : int64_t{0});

  Buffer bits = Buffer::Allocate(ByteLength(DataType::kBit, layer.elements));
  if (!SelectSmallest(arguments, bits.data())) return NonFiniteError(layer, arguments.weight);
  return Mask::FromBits(std::move(bits), layer.elements);
}

}  // namespace nni_compression::compression
