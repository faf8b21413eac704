// Structure `filter`: which filters layers lose.
#ifndef NNI_COMPRESSION_COMPRESSION_STRUCTURES_FILTERS_H_
#define NNI_COMPRESSION_COMPRESSION_STRUCTURES_FILTERS_H_

#include <cstdint>
#include <set>
#include <vector>

#include "absl/types/span.h"
#include "compression/kernels/range.h"
#include "compression/tensors/mask.h"
#include "compression/types/layer.h"

namespace nni_compression::compression {

// The weight of a layer as [outer, filters, inner].
Channels FiltersOf(const Layer& layer);

// Whether the mask removes all weights of each filter. Null: none.
std::vector<bool> RemovedFilters(const Layer& layer, const Mask* mask);

// The previous mask, or null, without those filters.
Mask WithoutFilters(const Layer& layer, const Mask* previous, const std::vector<bool>& removed);

// A layer of a rule, as far as its filters are concerned.
struct FilterLayer {
  const Layer* layer = nullptr;
  const Mask* mask = nullptr;  // in force; null: none
};

// Indices of the layers of each set, in the order of their first layers.
std::vector<std::vector<size_t>> GroupLayers(absl::Span<const FilterLayer> layers);

// The layers of a dependency group, or one layer that is in none. What is removed at a time is a
// unit: a filter, or all filters of the group that go together. Units are divided into runs of the
// same length, each of which loses the same number. At least one unit of each run, and one filter
// of each layer, stay.
//
// A unit is removed if all layers have lost all of its filters. One that some layer has lost, by a
// mask of the trainer, is begun, and goes in all layers, before any other, as far as something has
// to stay.
class FilterSet {
 public:
  // Of these of the layers. Takes time and memory for their filters. It keeps a multiple of
  // `round_to` filters of each layer, unless it has fewer, or lacks some units of its group.
  FilterSet(absl::Span<const FilterLayer> layers, std::vector<size_t> indices, int64_t round_to);

  // All sets.
  static std::vector<FilterSet> Of(absl::Span<const FilterLayer> layers, int64_t round_to);

  // Indices of its layers among those given.
  const std::vector<size_t>& layers() const { return layers_; }
  int64_t units() const { return static_cast<int64_t>(weights_.size()); }
  const std::vector<bool>& removed() const { return removed_; }  // units
  int64_t elements() const;                                      // of all layers
  int64_t removed_weights() const;

  // The unit of a filter of one of its layers.
  static int64_t UnitOf(const Layer& layer, int64_t filter);

  // How many units each run may lose, ascending, from 0 on.
  const std::vector<int64_t>& counts() const { return counts_; }

  // The largest of them up to trunc(length of a run * sparsity).
  int64_t CountFor(double sparsity) const;

  // Whether a run has lost less, or has units that are begun and could go.
  bool Lacks(int64_t count) const;

  // The units of each run in the order in which they go: those that are removed already, those that
  // are begun, then the smaller scores, then the lower indices. The last ones stay: see `counts`.
  std::vector<std::vector<int64_t>> Order(const std::vector<double>& scores) const;

  // How many of a run are removed already, and how many of those that are begun go with them.
  int64_t lost(size_t run) const { return lost_[run]; }
  int64_t going(size_t run) const { return going_[run]; }
  // How many weights a unit has.
  int64_t weights(int64_t unit) const { return weights_[static_cast<size_t>(unit)]; }

 private:
  int64_t length() const { return units() / runs_; }

  std::vector<size_t> layers_;
  int64_t runs_ = 1;
  std::vector<int64_t> counts_;
  std::vector<int64_t> weights_;  // by unit
  std::vector<bool> removed_;     // by unit
  std::vector<bool> begun_;       // by unit; all removed ones, too
  std::vector<int64_t> lost_;     // by run
  std::vector<int64_t> going_;    // by run, at least lost_
  // The units of layers that lack some, each set of units once.
  std::set<std::vector<int64_t>> partial_;
};

// The units that are removed once each run has lost so many of those that go first, and those that
// are begun.
std::vector<bool> RemovedUnits(const FilterSet& set, const std::vector<std::vector<int64_t>>& order,
                               int64_t count);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_STRUCTURES_FILTERS_H_
