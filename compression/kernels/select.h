// Exact selection of the smallest weights, the heart of every magnitude pruner.
#ifndef NNI_COMPRESSION_COMPRESSION_KERNELS_SELECT_H_
#define NNI_COMPRESSION_COMPRESSION_KERNELS_SELECT_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "compression/kernels/parallel.h"
#include "compression/types/dtype.h"

namespace nni_compression::compression {

// How many elements have magnitudes of which size: counts by the upper bits of their keys (see
// magnitude.h), 16 of them, or all 15 of a half type. Of a finite weight.
struct MagnitudeHistogram {
  std::vector<int64_t> counts;
};

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

  // Of this very weight; null: nothing is known. Of use without a previous mask.
  const MagnitudeHistogram* magnitudes = nullptr;

  SelectLimits limits = {};
};

// Writes the packed mask that prunes exactly `prune` elements, the smallest by (|w|, flat index),
// to `bits`: ceil(elements / 8) bytes, the bits after the last element 0. Returns false, and leaves
// `bits` unspecified, when an element is not finite.
//
// A sample of the weights brackets the threshold. One pass packs the mask that keeps what is not
// below the bracket, and collects the few elements inside it; the smallest of these are then
// pruned. Where they would be too many, because the weight is huge or its values agree, a pass
// counts them by 4096 ranges of magnitude first, which leaves a range with a handful of elements;
// with `magnitudes` nothing has to be counted. Unlucky samples cost a pass more, and values that
// agree in many bits one for each 12 of them: O(n) whatever the values. No copy of the weight, at
// most 10 MB of scratch. The bits depend neither on the number of threads nor on the instruction
// set. A weight that changes meanwhile gives some mask, and does no harm.
bool SelectSmallest(const SelectArguments& arguments, uint8_t* bits);

// Nothing when an element is not finite.
std::optional<MagnitudeHistogram> CountMagnitudes(DataType dtype, const void* weight,
                                                  int64_t elements);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_KERNELS_SELECT_H_
