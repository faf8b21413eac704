// Smallest and largest weights.
#ifndef NNI_COMPRESSION_COMPRESSION_KERNELS_RANGE_H_
#define NNI_COMPRESSION_COMPRESSION_KERNELS_RANGE_H_

#include <optional>

#include "absl/types/span.h"
#include "compression/types/dtype.h"
#include "compression/types/quantization.h"

namespace nni_compression::compression {

// A tensor as [outer, channels, inner], C order. Per tensor: one channel.
struct Channels {
  int64_t outer = 1;
  int64_t channels = 1;
  int64_t inner = 1;

  int64_t elements() const { return outer * channels * inner; }

  // `axis`: the dimension of the channels; nullopt: a single channel. `group_size`: only with axis
  // 0; each group of that many consecutive elements is then a channel. 0: no groups.
  static Channels Of(absl::Span<const int64_t> shape, std::optional<int> axis,
                     int64_t group_size = 0);
};

// The range of each channel of a weight, as float32: other types are widened, float64 is rounded to
// float32 first. Zeros are positive, so that equal weights give equal bits on any number of
// threads. nullopt when an element is not finite (as float32).
std::optional<Range> FindRange(DataType dtype, const void* weight, const Channels& channels);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_KERNELS_RANGE_H_
