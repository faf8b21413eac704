// Exact selection of the smallest weights, the heart of every magnitude pruner.
#ifndef NNI_COMPRESSION_COMPRESSION_KERNELS_SELECT_H_
#define NNI_COMPRESSION_COMPRESSION_KERNELS_SELECT_H_

#include <cstdint>

#include "compression/kernels/parallel.h"
#include "compression/types/dtype.h"

namespace nni_compression::compression {

// Sizes at which the selection takes another path; none changes the result. Tests choose small
// ones, so that short weights take every path.
struct SelectLimits {
  int64_t found = int64_t{1} << 19;  // so many candidates are collected and sorted; of more, a pass
                                     // counts ranges of magnitude first
  int64_t tiny = 2048;               // a weight with no more elements needs no threshold first
  int64_t grain = kGrain;            // elements that are worth a thread; a multiple of 64
};

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

  SelectLimits limits = {};
};

// Writes the packed mask that prunes exactly `prune` elements, the smallest by (|w|, flat index),
// to `bits`: ceil(elements / 8) bytes, the bits after the last element 0. Returns false, and leaves
// `bits` unspecified, when an element is not finite.
//
// A sample of the weights brackets the threshold. One pass packs the mask that keeps what is not
// below the bracket and collects the few candidates inside it; the smallest of these are then
// pruned. If the bracket holds too many candidates (a huge weight, or many ties), a pass over a
// histogram of 4096 magnitude ranges narrows it first. A sample that misses the threshold costs one
// extra pass, and values that agree in many bits one for each 12 of them: O(n) for any values. No
// copy of the weight, at most 10 MB of scratch memory. The bits depend neither on the number of
// threads nor on the instruction set. A weight that changes during the selection gives an arbitrary
// mask and is harmless.
bool SelectSmallest(const SelectArguments& arguments, uint8_t* bits);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_KERNELS_SELECT_H_
