// Writing a mask's zeros into a weight, or into its codes.
#ifndef NNI_COMPRESSION_COMPRESSION_KERNELS_APPLY_MASK_H_
#define NNI_COMPRESSION_COMPRESSION_KERNELS_APPLY_MASK_H_

#include "compression/dtype.h"
#include "compression/kernels/range.h"
#include "compression/mask.h"
#include "compression/quantization.h"

namespace nni_compression::compression {

// Sets the pruned elements of `weight`, which has the mask's number of elements, to 0.
void ApplyMask(const Mask& mask, DataType dtype, void* weight);

// Sets the codes of pruned elements, of CodeType(), to their zero points, which stand for 0. The
// formula is kAffine, with a zero point for each of the channels.
void ApplyMask(const Mask& mask, const Channels& channels, const QuantizationParameters& parameters,
               void* codes);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_KERNELS_APPLY_MASK_H_
