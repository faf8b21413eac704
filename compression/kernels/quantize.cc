#include "compression/kernels/quantize.h"

#include "compression/kernels/loops.h"
#include "compression/kernels/parallel.h"

namespace nni_compression::compression {

DataType CodeType(const QuantizationParameters& parameters) {
  if (parameters.code_min < 0) {
    return parameters.bits <= 8 ? DataType::kInt8 : DataType::kInt16;
  }
  return parameters.bits <= 8 ? DataType::kUInt8 : DataType::kUInt16;
}

void QuantizeTo(DataType dtype, const void* weight, const Channels& channels,
                const QuantizationParameters& parameters, QuantizeReply reply, float max_tanh,
                void* out) {
  const Loops& loops = CurrentLoops();
  ParallelFor(channels.elements(), kGrain, [&](int64_t begin, int64_t end) {
    loops.quantize(dtype, weight, channels, parameters, reply, max_tanh, begin, end, out);
  });
}

}  // namespace nni_compression::compression
