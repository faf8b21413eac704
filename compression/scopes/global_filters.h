// Scope `global` of structure `filter`: how many filters each layer or dependency group loses when
// all share one threshold.
#ifndef NNI_COMPRESSION_COMPRESSION_SCOPES_GLOBAL_FILTERS_H_
#define NNI_COMPRESSION_COMPRESSION_SCOPES_GLOBAL_FILTERS_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "compression/scopes/global.h"
#include "compression/structures/filters.h"

namespace nni_compression::compression {

// A set of the rule with what each of its runs loses at least and at most, both of set.counts().
struct RankedSet {
  const FilterSet* set = nullptr;
  int64_t at_least = 0;
  int64_t at_most = 0;
};

// For each set, how many units each of its runs loses so that together the units have at least
// `total` weights, as few as that takes. Those with the smallest normalized scores go; a set goes
// from one of its counts to the next at a time, with the mean score of the units between them.
// Ties go to the first set. `orders` are those of the scores; `normalize` is not kLamp, and divides
// by the mean or the norm over the units that are not removed yet.
std::vector<int64_t> CountFiltersGlobally(
    absl::Span<const RankedSet> sets, absl::Span<const std::vector<double>> scores,
    absl::Span<const std::vector<std::vector<int64_t>>> orders, int64_t total, Normalize normalize);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_SCOPES_GLOBAL_FILTERS_H_
