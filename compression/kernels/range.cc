#include "compression/kernels/range.h"

#include <algorithm>
#include <mutex>
#include <vector>

#include "compression/kernels/loops.h"
#include "compression/kernels/parallel.h"

namespace nni_compression::compression {
namespace {

Bounds TensorBounds(DataType dtype, const void* weight, int64_t n) {
  const Loops& loops = CurrentLoops();
  Bounds all = Bounds::None();
  std::mutex mutex;
  ParallelFor(n, kGrain, [&](int64_t begin, int64_t end) {
    const Bounds part = loops.bounds(dtype, weight, begin, end - begin);
    std::lock_guard<std::mutex> lock(mutex);
    all.Add(part);
  });
  return all;
}

// Each thread takes some of the channels, wherever they lie.
std::vector<Bounds> ChannelBounds(DataType dtype, const void* weight, const Channels& shape) {
  const Loops& loops = CurrentLoops();
  std::vector<Bounds> all(shape.channels, Bounds::None());
  const int64_t per_channel = shape.outer * shape.inner;
  ParallelFor(shape.channels, std::max<int64_t>(1, kGrain / per_channel),
              [&](int64_t begin, int64_t end) {
                for (int64_t o = 0; o < shape.outer; ++o) {
                  if (shape.inner == 1) {
                    loops.add_each(dtype, weight, o * shape.channels + begin, end - begin,
                                   all.data() + begin);
                    continue;
                  }
                  for (int64_t c = begin; c < end; ++c) {
                    const int64_t first = (o * shape.channels + c) * shape.inner;
                    all[c].Add(loops.bounds(dtype, weight, first, shape.inner));
                  }
                }
              });
  return all;
}

}  // namespace

Channels Channels::Of(absl::Span<const int64_t> shape, std::optional<int> axis,
                      int64_t group_size) {
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
  if (group_size > 0) {
    result.channels = result.elements() / group_size;
    result.inner = group_size;
  }
  return result;
}

std::optional<Range> FindRange(DataType dtype, const void* weight, const Channels& channels) {
  const std::vector<Bounds> all =
      channels.channels == 1 ? std::vector<Bounds>{TensorBounds(dtype, weight, channels.elements())}
                             : ChannelBounds(dtype, weight, channels);
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
