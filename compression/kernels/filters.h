// Numbers of a weight's filters, which are its slices along one dimension.
#ifndef NNI_COMPRESSION_COMPRESSION_KERNELS_FILTERS_H_
#define NNI_COMPRESSION_COMPRESSION_KERNELS_FILTERS_H_

#include <cstdint>
#include <vector>

#include "compression/kernels/range.h"
#include "compression/types/dtype.h"

namespace nni_compression::compression {

// The weight has finite elements only. All arithmetic is float64 unless said otherwise, and the
// results are the same on any number of threads and with any instruction set.

// The sum of |w| over each filter, and its Euclidean norm, of which no square overflows.
std::vector<double> FilterAbsSums(DataType dtype, const void* weight, const Channels& channels);
std::vector<double> FilterNorms(DataType dtype, const void* weight, const Channels& channels);

// The sum of the Euclidean distances of each filter to all others. Differences and short sums of
// their squares are float32, all else float64; no distance is computed from products of filters,
// which would lose the small ones.
std::vector<double> FilterDistanceSums(DataType dtype, const void* weight,
                                       const Channels& channels);

// Bytes of memory that FilterDistanceSums needs.
int64_t FilterDistanceBytes(const Channels& channels);

// Filters that FilterDistanceSums takes at most: its time is quadratic.
constexpr int64_t kMaxFilterDistances = 16384;

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_KERNELS_FILTERS_H_
