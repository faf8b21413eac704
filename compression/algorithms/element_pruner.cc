#include "compression/algorithms/element_pruner.h"

#include <algorithm>
#include <utility>

#include "compression/kernels/finite.h"
#include "compression/kernels/select.h"

namespace nni_compression::compression {

bool ElementPruner::IsStale(const Layer& layer, const LayerState& state, Clock clock) const {
  const std::optional<double> sparsity = Due(clock);
  return sparsity && CountToPrune(layer.elements, *sparsity) > state.pruned();
}

absl::StatusOr<Scores> ElementPruner::ScoresOf(const Layer& layer, const Weight& weight,
                                               const LayerState& state, bool chooses) const {
  const void* const data = weight.values.data_ptr();
  if (score_->bytes_per_element() > 0 && !AllFinite(layer.dtype, data, layer.elements)) {
    return NonFiniteError(layer, data);
  }
  if (!chooses && !traits().statistics.empty()) return Scores{layer.dtype, data};
  return score_->Of(layer, weight, state.statistics);
}

absl::StatusOr<Mask> ElementPruner::Prune(const Layer& layer, const Scores& scores,
                                          const LayerState& state, int64_t count) {
  SelectArguments arguments;
  arguments.dtype = scores.dtype;
  arguments.weight = scores.data;
  arguments.elements = layer.elements;
  arguments.previously_pruned = state.pruned();
  if (state.mask) arguments.previous = state.mask->bits().data();
  arguments.prune = std::max(state.pruned(), count);

  Buffer bits = Buffer::Allocate(ByteLength(DataType::kBit, layer.elements));
  // Only a score that is the weight may have other numbers.
  if (!SelectSmallest(arguments, bits.data())) return NonFiniteError(layer, scores.data);
  return Mask::FromBits(std::move(bits), layer.elements);
}

absl::StatusOr<Mask> ElementPruner::CalcMask(const Layer& layer, const Weight& weight,
                                             LayerState& state, Clock clock) const {
  const int64_t count = CountToPrune(layer.elements, Due(clock).value_or(0));
  const absl::StatusOr<Scores> scores = ScoresOf(layer, weight, state, count > state.pruned());
  if (!scores.ok()) return scores.status();
  return Prune(layer, *scores, state, count);
}

int64_t ElementPruner::TotalToPrune(std::vector<CountedLayer>& layers, Clock clock) const {
  CountedLayer& layer = layers.front();
  layer.at_least = layer.previously_pruned;
  layer.at_most = layer.elements;
  return std::max(layer.previously_pruned, CountToPrune(layer.elements, Due(clock).value_or(0)));
}

int64_t ElementPruner::work_bytes(const Layer& layer) const {
  return layer.elements * score_->bytes_per_element();
}

bool GlobalPruner::IsStaleTogether(absl::Span<const LayerInState> layers, Clock clock) const {
  const std::optional<double> sparsity = Due(clock);
  int64_t elements = 0;
  int64_t pruned = 0;
  for (const LayerInState& one : layers) {
    elements += one.layer.elements;
    pruned += one.state.pruned();
  }
  return sparsity && CountToPrune(elements, *sparsity) > pruned;
}

template <class AnyLayer>
void GlobalPruner::Limit(AnyLayer& layer, double target) const {
  layer.at_least = std::max(layer.previously_pruned,
                            CountToPrune(layer.elements, std::min(limits_.least, target)));
  layer.at_most = std::max(layer.previously_pruned, CountToPrune(layer.elements, limits_.most));
}

int64_t GlobalPruner::TotalToPrune(std::vector<CountedLayer>& layers, Clock clock) const {
  const double target = Due(clock).value_or(0);
  int64_t elements = 0;
  for (CountedLayer& layer : layers) {
    Limit(layer, target);
    elements += layer.elements;
  }
  return CountToPrune(elements, target);
}

absl::StatusOr<std::vector<Mask>> GlobalPruner::CalcMasks(std::vector<JointLayer>& layers,
                                                          Clock clock) const {
  const double target = Due(clock).value_or(0);
  std::vector<RankedLayer> ranked(layers.size());
  int64_t elements = 0;
  int64_t pruned = 0;
  int64_t least = 0;
  for (size_t i = 0; i < layers.size(); ++i) {
    ranked[i].elements = layers[i].layer.elements;
    ranked[i].previously_pruned = layers[i].state.pruned();
    if (layers[i].state.mask) ranked[i].previous = layers[i].state.mask->bits().data();
    Limit(ranked[i], target);
    elements += ranked[i].elements;
    pruned += ranked[i].previously_pruned;
    least += ranked[i].at_least;
  }
  const int64_t total = CountToPrune(elements, target);
  const bool chooses = std::max(total, least) > pruned;
  std::vector<Scores> scores;
  for (size_t i = 0; i < layers.size(); ++i) {
    absl::StatusOr<Scores> found =
        ScoresOf(layers[i].layer, layers[i].weight, layers[i].state, chooses);
    if (!found.ok()) return found.status();
    ranked[i].dtype = found->dtype;
    ranked[i].scores = found->data;
    scores.push_back(*std::move(found));
  }
  const PruneCounts counts = CountGlobally(ranked, total, normalize_);
  if (counts.not_finite) {
    const size_t bad = *counts.not_finite;
    return NonFiniteError(layers[bad].layer, scores[bad].data);
  }
  std::vector<Mask> masks;
  for (size_t i = 0; i < layers.size(); ++i) {
    absl::StatusOr<Mask> mask =
        Prune(layers[i].layer, scores[i], layers[i].state, counts.counts[i]);
    if (!mask.ok()) return mask.status();
    masks.push_back(*std::move(mask));
  }
  return masks;
}

int64_t GlobalPruner::work_bytes(const Layer& layer) const {
  const int64_t own = ElementPruner::work_bytes(layer);
  return own + GlobalWorkBytes(own > 0 ? DataType::kFloat64 : layer.dtype, layer.elements);
}

}  // namespace nni_compression::compression
