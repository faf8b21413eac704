#include "compression/algorithms/filter_pruner.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compression/kernels/finite.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {
namespace {

std::vector<LayerInState> InState(absl::Span<const JointLayer> layers) {
  std::vector<LayerInState> found;
  found.reserve(layers.size());
  for (const JointLayer& one : layers) found.push_back({one.layer, one.state});
  return found;
}

}  // namespace

FilterPruner::FilterPruner(const ScoreInfo& info, const Options& options,
                           std::unique_ptr<const Schedule> schedule, bool by_step, int64_t round_to,
                           std::optional<Global> global)
    : ScheduledPruner(info, std::move(schedule), by_step),
      score_(info.create_for_filters(options)),
      round_to_(round_to),
      global_(global) {
  traits_.joint = global_.has_value();
  traits_.takes_groups = true;
  if (info.activation) traits_.activation = info.activation(options);
}

FilterPruner::Goal FilterPruner::GoalOf(absl::Span<const LayerInState> layers,
                                        double sparsity) const {
  std::vector<FilterLayer> given;
  int64_t elements = 0;
  for (const LayerInState& one : layers) {
    given.push_back({&one.layer, one.state.mask ? &*one.state.mask : nullptr});
    elements += one.layer.elements;
  }
  Goal goal;
  goal.sets = FilterSet::Of(given, round_to_);
  for (const FilterSet& set : goal.sets) {
    if (global_) {
      const int64_t least = set.CountFor(std::min(global_->limits.least, sparsity));
      goal.ranked.push_back({&set, least, std::max(least, set.CountFor(global_->limits.most))});
    } else {
      const int64_t count = set.CountFor(sparsity);
      goal.ranked.push_back({&set, count, count});
      goal.is_met &= !set.Lacks(count);
    }
  }
  if (global_) {
    goal.total = CountToPrune(elements, sparsity);
    goal.is_met = !FiltersLackGlobally(goal.ranked, goal.total);
  }
  return goal;
}

bool FilterPruner::IsStale(const Layer& layer, const LayerState& state, Clock clock) const {
  // No layer of several by itself.
  return !global_ && !layer.group && IsStaleTogether({{layer, state}}, clock);
}

bool FilterPruner::IsStaleTogether(absl::Span<const LayerInState> layers, Clock clock) const {
  const std::optional<double> sparsity = Due(clock);
  return sparsity && !GoalOf(layers, *sparsity).is_met;
}

absl::StatusOr<std::vector<double>> FilterPruner::ScoresOf(
    const FilterSet& set, absl::Span<const JointLayer> layers) const {
  std::vector<double> scores(static_cast<size_t>(set.units()), 0.0);
  for (const size_t i : set.layers()) {
    const JointLayer& one = layers[i];
    const absl::StatusOr<std::vector<double>> own =
        score_->Of(one.layer, one.weight, one.state.statistics);
    if (!own.ok()) return own.status();
    for (size_t f = 0; f < own->size(); ++f) {
      double& score =
          scores[static_cast<size_t>(FilterSet::UnitOf(one.layer, static_cast<int64_t>(f)))];
      score += (*own)[f];
      if (std::isfinite(score)) continue;
      return absl::InvalidArgumentError(absl::StrCat("the score of filter ", f, " of layer ",
                                                     Quoted(one.layer.name),
                                                     " is beyond the range of float64"));
    }
  }
  return scores;
}

absl::StatusOr<Mask> FilterPruner::CalcMask(const Layer& layer, const Weight& weight,
                                            LayerState& state, Clock clock) const {
  std::vector<JointLayer> one = {{layer, weight, state}};
  absl::StatusOr<std::vector<Mask>> masks = CalcMasks(one, clock);
  if (!masks.ok()) return masks.status();
  return std::move(masks->front());
}

absl::StatusOr<std::vector<Mask>> FilterPruner::CalcMasks(std::vector<JointLayer>& layers,
                                                          Clock clock) const {
  for (const JointLayer& one : layers) {
    const void* const data = one.weight.values.data_ptr();
    if (!AllFinite(one.layer.dtype, data, one.layer.elements)) {
      return NonFiniteError(one.layer, data);
    }
  }
  const Goal goal = GoalOf(InState(layers), Due(clock).value_or(0));
  std::vector<std::vector<bool>> removed;  // units, by set
  removed.reserve(goal.sets.size());
  for (const FilterSet& set : goal.sets) removed.push_back(set.removed());
  if (!goal.is_met) {  // only then are scores needed, which a statistic may be missing for
    std::vector<std::vector<double>> scores;
    std::vector<std::vector<std::vector<int64_t>>> orders;
    std::vector<int64_t> counts;
    for (const RankedSet& ranked : goal.ranked) {
      absl::StatusOr<std::vector<double>> own = ScoresOf(*ranked.set, layers);
      if (!own.ok()) return own.status();
      orders.push_back(ranked.set->Order(*own));
      scores.push_back(*std::move(own));
      counts.push_back(ranked.at_least);
    }
    if (global_) {
      counts = CountFiltersGlobally(goal.ranked, scores, orders, goal.total, global_->normalize);
    }
    for (size_t s = 0; s < goal.sets.size(); ++s) {
      removed[s] = RemovedUnits(goal.sets[s], orders[s], counts[s]);
    }
  }
  std::vector<std::optional<Mask>> found(layers.size());
  for (size_t s = 0; s < goal.sets.size(); ++s) {
    for (const size_t i : goal.sets[s].layers()) {
      const Layer& layer = layers[i].layer;
      std::vector<bool> filters(static_cast<size_t>(layer.filters()));
      for (size_t f = 0; f < filters.size(); ++f) {
        filters[f] =
            removed[s][static_cast<size_t>(FilterSet::UnitOf(layer, static_cast<int64_t>(f)))];
      }
      const std::optional<Mask>& before = layers[i].state.mask;
      found[i] = WithoutFilters(layer, before ? &*before : nullptr, filters);
    }
  }
  std::vector<Mask> masks;
  masks.reserve(found.size());
  for (std::optional<Mask>& mask : found) masks.push_back(*std::move(mask));
  return masks;
}

int64_t FilterPruner::work_bytes(const Layer& layer) const {
  // Of each unit its score, weights, place in the order and in the blocks, and flags.
  constexpr int64_t kUnit = 96;
  const int64_t units = layer.group ? layer.group->count : layer.filters();
  return score_->work_bytes(layer) + kUnit * units;
}

}  // namespace nni_compression::compression
