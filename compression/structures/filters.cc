#include "compression/structures/filters.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>
#include <utility>

namespace nni_compression::compression {
namespace {

// Whether no bit in [begin, end) is set.
bool IsZero(const uint8_t* bits, int64_t begin, int64_t end) {
  for (; begin < end && begin % 8 != 0; ++begin) {
    if ((bits[begin >> 3] >> (begin & 7) & 1) != 0) return false;
  }
  for (; begin + 8 <= end; begin += 8) {
    if (bits[begin >> 3] != 0) return false;
  }
  for (; begin < end; ++begin) {
    if ((bits[begin >> 3] >> (begin & 7) & 1) != 0) return false;
  }
  return true;
}

void SetZero(uint8_t* bits, int64_t begin, int64_t end) {
  const auto clear = [bits](int64_t i) { bits[i >> 3] &= static_cast<uint8_t>(~(1 << (i & 7))); };
  for (; begin < end && begin % 8 != 0; ++begin) clear(begin);
  for (; begin + 8 <= end; begin += 8) bits[begin >> 3] = 0;
  for (; begin < end; ++begin) clear(begin);
}

template <class F>
bool AllStretches(const Channels& channels, int64_t filter, F&& f) {
  for (int64_t o = 0; o < channels.outer; ++o) {
    const int64_t begin = (o * channels.channels + filter) * channels.inner;
    if (!f(begin, begin + channels.inner)) return false;
  }
  return true;
}

}  // namespace

Channels FiltersOf(const Layer& layer) { return Channels::Of(layer.shape, layer.channel_axis); }

std::vector<bool> RemovedFilters(const Layer& layer, const Mask* mask) {
  const Channels channels = FiltersOf(layer);
  std::vector<bool> removed(static_cast<size_t>(channels.channels), false);
  if (mask == nullptr || mask->pruned() == 0) return removed;
  const uint8_t* const bits = mask->bits().data();
  for (int64_t f = 0; f < channels.channels; ++f) {
    removed[static_cast<size_t>(f)] = AllStretches(
        channels, f, [&](int64_t begin, int64_t end) { return IsZero(bits, begin, end); });
  }
  return removed;
}

Mask WithoutFilters(const Layer& layer, const Mask* previous, const std::vector<bool>& removed) {
  const Mask before = previous == nullptr ? Mask::Ones(layer.elements) : *previous;
  Buffer bits = Buffer::Allocate(before.bits().size());
  std::memcpy(bits.data(), before.bits().data(), static_cast<size_t>(bits.size()));
  const Channels channels = FiltersOf(layer);
  for (int64_t f = 0; f < channels.channels; ++f) {
    if (!removed[static_cast<size_t>(f)]) continue;
    AllStretches(channels, f, [&](int64_t begin, int64_t end) {
      SetZero(bits.data(), begin, end);
      return true;
    });
  }
  return *Mask::FromBits(std::move(bits), layer.elements);
}

int64_t FilterSet::UnitOf(const Layer& layer, int64_t filter) {
  return layer.group ? layer.group->units[static_cast<size_t>(filter)] : filter;
}

std::vector<FilterSet> FilterSet::Of(absl::Span<const FilterLayer> layers, int64_t round_to) {
  std::vector<FilterSet> sets;
  std::map<int, size_t> of_group;
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = *layers[i].layer;
    size_t index = sets.size();
    if (layer.group) index = of_group.try_emplace(layer.group->index, index).first->second;
    if (index == sets.size()) sets.emplace_back();
    sets[index].layers_.push_back(i);
  }
  for (FilterSet& set : sets) {
    const Layer& first = *layers[set.layers_.front()].layer;
    const int64_t units = first.group ? first.group->count : FiltersOf(first).channels;
    set.runs_ = first.group ? first.group->runs : 1;
    set.weights_.assign(static_cast<size_t>(units), 0);
    set.removed_.assign(static_cast<size_t>(units), true);
    int64_t together = 0;  // the greatest number that divides the filters of every unit
    for (const size_t i : set.layers_) {
      const Layer& layer = *layers[i].layer;
      const Channels channels = FiltersOf(layer);
      const std::vector<bool> removed = RemovedFilters(layer, layers[i].mask);
      std::vector<int64_t> filters(static_cast<size_t>(units), 0);
      for (int64_t f = 0; f < channels.channels; ++f) {
        const auto unit = static_cast<size_t>(UnitOf(layer, f));
        ++filters[unit];
        set.weights_[unit] += channels.outer * channels.inner;
        if (!removed[static_cast<size_t>(f)]) set.removed_[unit] = false;
      }
      std::vector<int64_t> own;
      for (int64_t u = 0; u < units; ++u) {
        if (filters[static_cast<size_t>(u)] > 0) own.push_back(u);
        together = std::gcd(together, filters[static_cast<size_t>(u)]);
      }
      if (static_cast<int64_t>(own.size()) < units) set.partial_.push_back(std::move(own));
    }
    const int64_t length = set.length();
    for (int64_t run = 0; run < set.runs_; ++run) {
      const auto begin = set.removed_.begin() + run * length;
      set.lost_.push_back(std::count(begin, begin + length, true));
    }
    const int64_t step = round_to / std::gcd(round_to, together * set.runs_);
    const int64_t staying = std::max<int64_t>(1, static_cast<int64_t>(set.partial_.size()));
    set.counts_ = {0};
    for (int64_t kept = (length - 1) / step * step; kept >= staying; kept -= step) {
      set.counts_.push_back(length - kept);
    }
  }
  return sets;
}

int64_t FilterSet::CountFor(double sparsity) const {
  const auto wanted = static_cast<int64_t>(static_cast<double>(length()) * sparsity);
  return *(std::upper_bound(counts_.begin(), counts_.end(), wanted) - 1);
}

bool FilterSet::Lacks(int64_t count) const {
  return std::any_of(lost_.begin(), lost_.end(), [count](int64_t lost) { return lost < count; });
}

std::vector<std::vector<int64_t>> FilterSet::Order(const std::vector<double>& scores) const {
  const auto goes_before = [&](int64_t a, int64_t b) {
    const auto x = static_cast<size_t>(a);
    const auto y = static_cast<size_t>(b);
    if (removed_[x] != removed_[y]) return static_cast<bool>(removed_[x]);
    if (!removed_[x] && scores[x] != scores[y]) return scores[x] < scores[y];
    return a < b;
  };
  std::vector<bool> stays(static_cast<size_t>(units()), false);
  for (const std::vector<int64_t>& own : partial_) {
    const int64_t best = *std::max_element(own.begin(), own.end(), goes_before);
    stays[static_cast<size_t>(best)] = !removed_[static_cast<size_t>(best)];
  }
  std::vector<std::vector<int64_t>> order(static_cast<size_t>(runs_));
  for (size_t run = 0; run < order.size(); ++run) {
    order[run].resize(static_cast<size_t>(length()));
    std::iota(order[run].begin(), order[run].end(), static_cast<int64_t>(run) * length());
    std::sort(order[run].begin(), order[run].end(), [&](int64_t a, int64_t b) {
      const bool last = stays[static_cast<size_t>(a)];
      if (last != stays[static_cast<size_t>(b)]) return !last;
      return goes_before(a, b);
    });
  }
  return order;
}

std::vector<bool> RemovedUnits(const FilterSet& set, const std::vector<std::vector<int64_t>>& order,
                               int64_t count) {
  std::vector<bool> removed = set.removed();
  for (const std::vector<int64_t>& run : order) {
    for (int64_t i = 0; i < count; ++i) {
      removed[static_cast<size_t>(run[static_cast<size_t>(i)])] = true;
    }
  }
  return removed;
}

}  // namespace nni_compression::compression
