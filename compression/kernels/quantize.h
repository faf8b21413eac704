// From weights to codes and values.
#ifndef NNI_COMPRESSION_COMPRESSION_KERNELS_QUANTIZE_H_
#define NNI_COMPRESSION_COMPRESSION_KERNELS_QUANTIZE_H_

#include "compression/kernels/range.h"
#include "compression/types/dtype.h"
#include "compression/types/quantization.h"

namespace nni_compression::compression {

// The smallest type that holds codes in [code_min, code_max]: signed if code_min is negative.
DataType CodeType(const QuantizationParameters& parameters);

// Applies `parameters`, whose scale and zero_point have one entry per channel, to a finite weight.
// Writes either codes of CodeType() or values of the weight's dtype to `out`. All arithmetic is
// float32, as the comments of Rounding and Formula have it; weights of other types are widened (or,
// float64, rounded) first and values are rounded to the weight's type once. A value beyond the
// largest finite float32 or number of that type becomes that number: values are finite.
//
// `max_tanh`: max|tanh(w)|, for Rounding::kDoReFa alone; not 0.
void QuantizeTo(DataType dtype, const void* weight, const Channels& channels,
                const QuantizationParameters& parameters, QuantizeReply reply, float max_tanh,
                void* out);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_KERNELS_QUANTIZE_H_
