// A mask's kept elements, one after the other.
#ifndef NNI_COMPRESSION_COMPRESSION_KERNELS_GATHER_H_
#define NNI_COMPRESSION_COMPRESSION_KERNELS_GATHER_H_

#include <cstdint>

#include "compression/types/dtype.h"

namespace nni_compression::compression {

// Moves the elements of `weight` that the packed mask keeps to its beginning, in their order and
// bit for bit. `dtype` is a weight's. What comes after them is unspecified.
void GatherKept(const uint8_t* mask, int64_t elements, DataType dtype, void* weight);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_KERNELS_GATHER_H_
