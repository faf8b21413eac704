#include "compression/algorithms/filter_pruner.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compression/kernels/finite.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {
namespace {

FilterLayer FilterLayerOf(const Layer& layer, const LayerState& state) {
  return {&layer, state.mask ? &*state.mask : nullptr};
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

RankedSet FilterPruner::Ranked(const FilterSet& set, double sparsity) const {
  if (!global_) {
    const int64_t count = set.CountFor(sparsity);
    return {&set, count, count};
  }
  const int64_t least = set.CountFor(std::min(global_->limits.least, sparsity));
  return {&set, least, std::max(least, set.CountFor(global_->limits.most))};
}

void FilterPruner::Progress::Add(const FilterSet& set, const RankedSet& ranked) {
  elements += set.elements();
  lost += set.removed_weights();
  lacks |= set.Lacks(ranked.at_least);
  could_lose_more |= set.Lacks(ranked.at_most);
}

bool FilterPruner::IsMet(const Progress& progress, double sparsity) const {
  if (progress.lacks) return false;
  if (!global_ || !progress.could_lose_more) return true;
  return progress.lost >= CountToPrune(progress.elements, sparsity);
}

bool FilterPruner::IsStale(const Layer& layer, const LayerState& state, Clock clock) const {
  // No layer of several by itself.
  return !global_ && layer.group == nullptr && IsStaleTogether({{layer, state}}, clock);
}

bool FilterPruner::IsStaleTogether(absl::Span<const LayerInState> layers, Clock clock) const {
  const std::optional<double> sparsity = Due(clock);
  if (!sparsity) return false;
  std::vector<FilterLayer> given;
  given.reserve(layers.size());
  for (const LayerInState& one : layers) given.push_back(FilterLayerOf(one.layer, one.state));
  Progress progress;
  // One set at a time: a mask has a bit where a set has many bytes.
  for (std::vector<size_t>& indices : GroupLayers(given)) {
    const FilterSet set(given, std::move(indices), round_to_);
    progress.Add(set, Ranked(set, *sparsity));
    if (progress.lacks) return true;
  }
  return !IsMet(progress, *sparsity);
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

absl::StatusOr<std::vector<std::vector<bool>>> FilterPruner::Removed(
    const std::vector<FilterSet>& sets, absl::Span<const JointLayer> layers,
    double sparsity) const {
  std::vector<std::vector<bool>> removed;
  std::vector<RankedSet> ranked;
  Progress progress;
  for (const FilterSet& set : sets) {
    removed.push_back(set.removed());
    ranked.push_back(Ranked(set, sparsity));
    progress.Add(set, ranked.back());
  }
  // Otherwise scores are needed, which a statistic may be missing for.
  if (IsMet(progress, sparsity)) return removed;
  std::vector<std::vector<double>> scores;
  std::vector<std::vector<std::vector<int64_t>>> orders;
  std::vector<int64_t> counts;
  for (size_t s = 0; s < sets.size(); ++s) {
    absl::StatusOr<std::vector<double>> own = ScoresOf(sets[s], layers);
    if (!own.ok()) return own.status();
    orders.push_back(sets[s].Order(*own));
    scores.push_back(*std::move(own));
    counts.push_back(ranked[s].at_least);
  }
  if (global_) {
    counts = CountFiltersGlobally(ranked, scores, orders, CountToPrune(progress.elements, sparsity),
                                  global_->normalize);
  }
  for (size_t s = 0; s < sets.size(); ++s) removed[s] = RemovedUnits(sets[s], orders[s], counts[s]);
  return removed;
}

absl::StatusOr<std::vector<Mask>> FilterPruner::CalcMasks(std::vector<JointLayer>& layers,
                                                          Clock clock) const {
  std::vector<FilterLayer> given;
  given.reserve(layers.size());
  for (const JointLayer& one : layers) {
    const void* const data = one.weight.values.data_ptr();
    if (!AllFinite(one.layer.dtype, data, one.layer.elements)) {
      return NonFiniteError(one.layer, data);
    }
    given.push_back(FilterLayerOf(one.layer, one.state));
  }
  const std::vector<FilterSet> sets = FilterSet::Of(given, round_to_);
  const auto removed = Removed(sets, layers, Due(clock).value_or(0));
  if (!removed.ok()) return removed.status();
  std::vector<std::optional<Mask>> found(layers.size());
  for (size_t s = 0; s < sets.size(); ++s) {
    for (const size_t i : sets[s].layers()) {
      const Layer& layer = layers[i].layer;
      std::vector<bool> filters(static_cast<size_t>(layer.filters()));
      for (size_t f = 0; f < filters.size(); ++f) {
        const int64_t unit = FilterSet::UnitOf(layer, static_cast<int64_t>(f));
        filters[f] = (*removed)[s][static_cast<size_t>(unit)];
      }
      found[i] = WithoutFilters(layer, given[i].mask, filters);
    }
  }
  std::vector<Mask> masks;
  masks.reserve(found.size());
  for (std::optional<Mask>& mask : found) masks.push_back(*std::move(mask));
  return masks;
}

int64_t FilterPruner::work_bytes(const Layer& layer) const {
  // Of each unit, of which a group has at most as many as filters: its score, weights, place in the
  // order and in the blocks, and flags.
  constexpr int64_t kUnit = 128;
  return score_->work_bytes(layer) + kUnit * layer.filters();
}

}  // namespace nni_compression::compression
