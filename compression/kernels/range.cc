#include "compression/kernels/range.h"

#include <algorithm>
#include <limits>
#include <mutex>

#include "compression/kernels/dispatch.h"
#include "compression/kernels/parallel.h"

namespace nni_compression::compression {
namespace {

constexpr float kMax = std::numeric_limits<float>::max();

// The bounds of some weights. NaN wins over numbers and infinity over finite ones, so that bad
// weights show in the result.
struct Bounds {
  float minimum = std::numeric_limits<float>::infinity();
  float maximum = -std::numeric_limits<float>::infinity();
  bool bad = false;

  void Add(float w) {
    bad |= !(w >= -kMax && w <= kMax);
    minimum = w < minimum ? w : minimum;
    maximum = w > maximum ? w : maximum;
  }
  void Add(const Bounds& other) {
    bad |= other.bad;
    minimum = std::min(minimum, other.minimum);
    maximum = std::max(maximum, other.maximum);
  }
};

// Several bounds side by side, so that the loop does not wait for itself.
template <class T>
Bounds BoundsOf(const T* weight, int64_t n) {
  constexpr int64_t kLanes = 16;
  float minimum[kLanes], maximum[kLanes];
  uint32_t bad[kLanes] = {};
  std::fill_n(minimum, kLanes, std::numeric_limits<float>::infinity());
  std::fill_n(maximum, kLanes, -std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) {
      const auto w = static_cast<float>(weight[i + j]);
      // Not a branch: NaN fails both comparisons.
      bad[j] |= static_cast<uint32_t>(!(w >= -kMax)) | static_cast<uint32_t>(!(w <= kMax));
      minimum[j] = w < minimum[j] ? w : minimum[j];
      maximum[j] = w > maximum[j] ? w : maximum[j];
    }
  }
  Bounds bounds;
  for (; i < n; ++i) bounds.Add(static_cast<float>(weight[i]));
  for (int64_t j = 0; j < kLanes; ++j) bounds.Add(Bounds{minimum[j], maximum[j], bad[j] != 0});
  return bounds;
}

template <class T>
Bounds TensorBounds(const T* weight, int64_t n) {
  Bounds all;
  std::mutex mutex;
  ParallelFor(n, kGrain, [&](int64_t begin, int64_t end) {
    const Bounds part = BoundsOf(weight + begin, end - begin);
    std::lock_guard<std::mutex> lock(mutex);
    all.Add(part);
  });
  return all;
}

// Each thread takes some of the channels, wherever they lie.
template <class T>
std::vector<Bounds> ChannelBounds(const T* weight, const Channels& shape) {
  std::vector<Bounds> all(shape.channels);
  const int64_t per_channel = shape.outer * shape.inner;
  ParallelFor(shape.channels, std::max<int64_t>(1, kGrain / per_channel),
              [&](int64_t begin, int64_t end) {
                for (int64_t o = 0; o < shape.outer; ++o) {
                  const T* row = weight + o * shape.channels * shape.inner;
                  for (int64_t c = begin; c < end; ++c) {
                    if (shape.inner == 1) {
                      all[c].Add(static_cast<float>(row[c]));
                    } else {
                      all[c].Add(BoundsOf(row + c * shape.inner, shape.inner));
                    }
                  }
                }
              });
  return all;
}

}  // namespace

Channels Channels::Of(absl::Span<const int64_t> shape, std::optional<int> axis) {
  Channels result;
  for (int i = 0; i < static_cast<int>(shape.size()); ++i) {
    if (axis == i) {
      result.channels = shape[i];
    } else if (axis && i < *axis) {
      result.outer *= shape[i];
    } else {
      result.inner *= shape[i];
    }
  }
  return result;
}

std::optional<Range> FindRange(DataType dtype, const void* weight, const Channels& channels) {
  const std::vector<Bounds> all = DispatchWeight(dtype, [&](auto tag) {
    const auto* typed = static_cast<const typename decltype(tag)::Type*>(weight);
    return channels.channels == 1 ? std::vector<Bounds>{TensorBounds(typed, channels.elements())}
                                  : ChannelBounds(typed, channels);
  });
  Range range;
  for (const Bounds& bounds : all) {
    if (bounds.bad) return std::nullopt;
    // -0.0 + 0.0 is 0.0.
    range.minimum.push_back(bounds.minimum + 0.0f);
    range.maximum.push_back(bounds.maximum + 0.0f);
  }
  return range;
}

}  // namespace nni_compression::compression
