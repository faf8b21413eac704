#include "compression/types/quantization.h"

namespace nni_compression::compression {

bool operator==(const QuantizationParameters& a, const QuantizationParameters& b) {
  return a.formula == b.formula && a.rounding == b.rounding && a.bits == b.bits &&
         a.code_min == b.code_min && a.code_max == b.code_max && a.scale == b.scale &&
         a.zero_point == b.zero_point && a.channel_axis == b.channel_axis &&
         a.group_size == b.group_size;
}

}  // namespace nni_compression::compression
