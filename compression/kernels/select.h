// Exact selection of the smallest weights, the heart of every magnitude pruner.
#ifndef NNI_COMPRESSION_COMPRESSION_KERNELS_SELECT_H_
#define NNI_COMPRESSION_COMPRESSION_KERNELS_SELECT_H_

#include <cstdint>

#include "compression/dtype.h"

namespace nni_compression::compression {

struct SelectArguments {
  DataType dtype = DataType::kFloat32;  // of a weight
  const void* weight = nullptr;
  int64_t elements = 0;  // at least 1

  // How many to prune in all, 0 to elements.
  int64_t prune = 0;

  // A packed mask; its zeros rank before everything else. `prune` is not less than their number.
  // Null: none.
  const uint8_t* previous = nullptr;
  int64_t previously_pruned = 0;
};

// Writes the packed mask that prunes exactly `prune` elements, the smallest by (|w|, flat index),
// to `bits`: ceil(elements / 8) bytes, the bits after the last element 0. Returns false, and leaves
// `bits` unspecified, when an element is not finite.
//
// A radix selection: one histogram of the magnitudes' upper 16 bits, then one of the next digits
// within the bucket that holds the threshold, until the threshold is exact (two for float32, one
// for the half types, four for float64), then one pass that compares and packs. O(n) whatever the
// values, no copy of the weight, about 0.3 MB of scratch per thread. The bits do not depend on the
// number of threads. A weight that changes meanwhile gives some mask, and does no harm.
bool SelectSmallest(const SelectArguments& arguments, uint8_t* bits);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_KERNELS_SELECT_H_
