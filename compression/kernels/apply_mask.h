// Writing a mask's zeros into a weight.
#ifndef NNI_COMPRESSION_COMPRESSION_KERNELS_APPLY_MASK_H_
#define NNI_COMPRESSION_COMPRESSION_KERNELS_APPLY_MASK_H_

#include "compression/dtype.h"
#include "compression/mask.h"

namespace nni_compression::compression {

// Sets the pruned elements of `weight`, which has the mask's number of elements, to 0.
void ApplyMask(const Mask& mask, DataType dtype, void* weight);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_KERNELS_APPLY_MASK_H_
