#include "compression/scopes/global_filters.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

namespace nni_compression::compression {
namespace {

// What a set loses when its count grows to the next.
struct Block {
  double score = 0;
  size_t set = 0;
  int64_t count = 0;    // the next
  int64_t weights = 0;  // of its units
};

// What the scores of the units that are not removed are divided by.
double Divisor(const FilterSet& set, const std::vector<double>& scores, Normalize normalize) {
  if (normalize == Normalize::kNone) return 1;
  double largest = 0;
  for (size_t unit = 0; unit < scores.size(); ++unit) {
    if (!set.removed()[unit]) largest = std::max(largest, std::abs(scores[unit]));
  }
  if (largest == 0) return 1;
  double sum = 0;
  double squares = 0;
  int64_t kept = 0;
  for (size_t unit = 0; unit < scores.size(); ++unit) {
    if (set.removed()[unit]) continue;
    const double part = std::abs(scores[unit]) / largest;  // no square overflows
    sum += part;
    squares += part * part;
    ++kept;
  }
  return largest *
         (normalize == Normalize::kMean ? sum / static_cast<double>(kept) : std::sqrt(squares));
}

}  // namespace

std::vector<int64_t> CountFiltersGlobally(
    absl::Span<const RankedSet> sets, absl::Span<const std::vector<double>> scores,
    absl::Span<const std::vector<std::vector<int64_t>>> orders, int64_t total,
    Normalize normalize) {
  std::vector<int64_t> counts(sets.size(), 0);
  std::vector<Block> blocks;
  for (size_t s = 0; s < sets.size(); ++s) {
    const FilterSet& set = *sets[s].set;
    const double divisor = Divisor(set, scores[s], normalize);
    total -= set.removed_weights();
    for (size_t run = 0; run < orders[s].size(); ++run) {  // what is begun goes in any case
      for (int64_t i = set.lost(run); i < set.going(run); ++i) {
        total -= set.weights(orders[s][run][static_cast<size_t>(i)]);
      }
    }
    double highest = -std::numeric_limits<double>::infinity();
    for (size_t next = 1; next < set.counts().size(); ++next) {
      Block block;
      block.set = s;
      block.count = set.counts()[next];
      if (block.count > sets[s].at_most) break;
      double sum = 0;
      int64_t units = 0;
      for (size_t run = 0; run < orders[s].size(); ++run) {
        const int64_t begin = std::max(set.counts()[next - 1], set.going(run));
        for (int64_t i = begin; i < block.count; ++i) {
          const int64_t unit = orders[s][run][static_cast<size_t>(i)];
          sum += scores[s][static_cast<size_t>(unit)] / divisor;
          block.weights += set.weights(unit);
          ++units;
        }
      }
      if (block.count <= sets[s].at_least) {
        counts[s] = block.count;
        total -= block.weights;
        continue;
      }
      if (units == 0) continue;
      // Runs that have lost more than others take no part in the first blocks.
      block.score = highest = std::max(highest, sum / static_cast<double>(units));
      blocks.push_back(block);
    }
  }
  std::sort(blocks.begin(), blocks.end(), [](const Block& a, const Block& b) {
    return std::tie(a.score, a.set, a.count) < std::tie(b.score, b.set, b.count);
  });
  for (const Block& block : blocks) {
    if (total <= 0) break;
    counts[block.set] = block.count;
    total -= block.weights;
  }
  return counts;
}

}  // namespace nni_compression::compression
