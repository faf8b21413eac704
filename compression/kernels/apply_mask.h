// Writing a mask's zeros into a weight, or into its codes.
#ifndef NNI_COMPRESSION_COMPRESSION_KERNELS_APPLY_MASK_H_
#define NNI_COMPRESSION_COMPRESSION_KERNELS_APPLY_MASK_H_

#include <cstdint>

#include "compression/kernels/range.h"
#include "compression/types/dtype.h"
#include "compression/types/quantization.h"

namespace nni_compression::compression {

// Sets the elements of `weight` that the packed mask prunes to 0.
void ApplyMask(const uint8_t* mask, int64_t elements, DataType dtype, void* weight);

// Sets the codes of pruned elements, of CodeType(), to their zero points, which stand for 0. The
// formula is kAffine, with a zero point for each of the channels.
void ApplyMask(const uint8_t* mask, const Channels& channels,
               const QuantizationParameters& parameters, void* codes);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_KERNELS_APPLY_MASK_H_
