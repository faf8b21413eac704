// A mask's kept elements, one after the other.
#ifndef NNI_COMPRESSION_COMPRESSION_KERNELS_GATHER_H_
#define NNI_COMPRESSION_COMPRESSION_KERNELS_GATHER_H_

#include "compression/dtype.h"
#include "compression/mask.h"

namespace nni_compression::compression {

// Moves the kept elements of `weight`, which has the mask's number of elements of a weight's type,
// to its beginning, in their order and bit for bit. What comes after them is unspecified.
void GatherKept(const Mask& mask, DataType dtype, void* weight);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_KERNELS_GATHER_H_
