#include "compression/structures/filters.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>
#include <utility>

#include "compression/kernels/words.h"

namespace nni_compression::compression {
namespace {

// Whether no bit in [begin, end) is set.
bool IsZero(const uint8_t* bits, int64_t begin, int64_t end) {
  for (; begin < end && begin % 8 != 0; ++begin) {
    if (BitAt(bits, begin)) return false;
  }
  for (; begin + 8 <= end; begin += 8) {
    if (bits[begin >> 3] != 0) return false;
  }
  for (; begin < end; ++begin) {
    if (BitAt(bits, begin)) return false;
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
  const auto count = static_cast<size_t>(channels.channels);
  std::vector<bool> removed(count, false);
  if (mask == nullptr || mask->pruned() == 0) return removed;
  const uint8_t* const bits = mask->bits().data();
  if (channels.inner == 1 && channels.channels % 8 == 0) {  // filters lie side by side
    std::vector<uint8_t> kept(count / 8, 0);
    for (int64_t o = 0; o < channels.outer; ++o) {
      const uint8_t* const row = bits + o * static_cast<int64_t>(kept.size());
      for (size_t i = 0; i < kept.size(); ++i) kept[i] |= row[i];
    }
    for (size_t f = 0; f < count; ++f) removed[f] = !BitAt(kept.data(), static_cast<int64_t>(f));
    return removed;
  }
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

std::vector<std::vector<size_t>> GroupLayers(absl::Span<const FilterLayer> layers) {
  std::vector<std::vector<size_t>> sets;
  std::map<int, size_t> of_group;
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = *layers[i].layer;
    size_t index = sets.size();
    if (layer.group) index = of_group.try_emplace(layer.group->index, index).first->second;
    if (index == sets.size()) sets.emplace_back();
    sets[index].push_back(i);
  }
  return sets;
}

FilterSet::FilterSet(absl::Span<const FilterLayer> layers, std::vector<size_t> indices,
                     int64_t round_to)
    : layers_(std::move(indices)) {
  const Layer& first = *layers[layers_.front()].layer;
  const auto units =
      static_cast<size_t>(first.group ? first.group->count : FiltersOf(first).channels);
  runs_ = first.group ? first.group->runs : 1;
  weights_.assign(units, 0);
  removed_.assign(units, true);
  begun_.assign(units, false);
  std::vector<int64_t> filters(units, 0);  // of a layer
  std::vector<int64_t> kept(units, 0);     // of these, not removed
  int64_t together = 0;                    // the greatest number that divides those of every unit
  for (const size_t i : layers_) {
    const Layer& layer = *layers[i].layer;
    const Channels channels = FiltersOf(layer);
    const std::vector<bool> removed = RemovedFilters(layer, layers[i].mask);
    std::vector<int64_t> own;
    for (int64_t f = 0; f < channels.channels; ++f) {
      const int64_t unit = UnitOf(layer, f);
      const auto u = static_cast<size_t>(unit);
      if (filters[u]++ == 0) own.push_back(unit);
      if (!removed[static_cast<size_t>(f)]) ++kept[u];
      weights_[u] += channels.outer * channels.inner;
    }
    for (const int64_t unit : own) {
      const auto u = static_cast<size_t>(unit);
      together = std::gcd(together, filters[u]);
      if (kept[u] > 0) {
        removed_[u] = false;
      } else {
        begun_[u] = true;
      }
      filters[u] = kept[u] = 0;
    }
    if (own.size() == units) continue;
    std::sort(own.begin(), own.end());
    partial_.insert(std::move(own));
  }
  // In each run stays a unit, and in each run that a layer has units in, one of it may.
  std::vector<int64_t> touching(static_cast<size_t>(runs_), 0);
  for (const std::vector<int64_t>& own : partial_) {
    int64_t last = -1;
    for (const int64_t unit : own) {
      if (unit / length() == last) continue;
      last = unit / length();
      ++touching[static_cast<size_t>(last)];
    }
  }
  const int64_t staying = std::max<int64_t>(1, *std::max_element(touching.begin(), touching.end()));
  const int64_t step = round_to / std::gcd(round_to, together * runs_);
  counts_ = {0};
  for (int64_t rest = (length() - 1) / step * step; rest >= staying; rest -= step) {
    counts_.push_back(length() - rest);
  }
  for (int64_t run = 0; run < runs_; ++run) {
    const auto count = [&](const std::vector<bool>& flags) {
      const auto begin = flags.begin() + run * length();
      return static_cast<int64_t>(std::count(begin, begin + length(), true));
    };
    lost_.push_back(count(removed_));
    going_.push_back(std::max(lost_.back(), std::min(count(begun_), length() - staying)));
  }
}

std::vector<FilterSet> FilterSet::Of(absl::Span<const FilterLayer> layers, int64_t round_to) {
  std::vector<FilterSet> sets;
  for (std::vector<size_t>& indices : GroupLayers(layers)) {
    sets.emplace_back(layers, std::move(indices), round_to);
  }
  return sets;
}

int64_t FilterSet::elements() const {
  return std::accumulate(weights_.begin(), weights_.end(), int64_t{0});
}

int64_t FilterSet::removed_weights() const {
  int64_t weights = 0;
  for (size_t unit = 0; unit < weights_.size(); ++unit) {
    if (removed_[unit]) weights += weights_[unit];
  }
  return weights;
}

int64_t FilterSet::CountFor(double sparsity) const {
  const auto wanted = static_cast<int64_t>(static_cast<double>(length()) * sparsity);
  return *(std::upper_bound(counts_.begin(), counts_.end(), wanted) - 1);
}

bool FilterSet::Lacks(int64_t count) const {
  for (size_t run = 0; run < lost_.size(); ++run) {
    if (lost_[run] < std::max(count, going_[run])) return true;
  }
  return false;
}

std::vector<std::vector<int64_t>> FilterSet::Order(const std::vector<double>& scores) const {
  const auto goes_before = [&](int64_t a, int64_t b) {
    const auto x = static_cast<size_t>(a);
    const auto y = static_cast<size_t>(b);
    if (removed_[x] != removed_[y]) return static_cast<bool>(removed_[x]);
    if (begun_[x] != begun_[y]) return static_cast<bool>(begun_[x]);
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
  for (size_t run = 0; run < order.size(); ++run) {
    for (int64_t i = 0; i < std::max(count, set.going(run)); ++i) {
      removed[static_cast<size_t>(order[run][static_cast<size_t>(i)])] = true;
    }
  }
  return removed;
}

}  // namespace nni_compression::compression
