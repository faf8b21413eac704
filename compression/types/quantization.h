// What quantizers answer.
#ifndef NNI_COMPRESSION_COMPRESSION_TYPES_QUANTIZATION_H_
#define NNI_COMPRESSION_COMPRESSION_TYPES_QUANTIZATION_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "compression/types/buffer.h"
#include "compression/types/dtype.h"

namespace nni_compression::compression {

// The dequantization formula: float32 arithmetic, where an infinity becomes the largest finite
// number.
enum class Formula {
  kAffine = 1,  // (code - zero_point) * scale
  kDoReFa = 2,  // 2 * code / (2^bits - 1) - 1
};

// The quantization formula: float32 arithmetic.
enum class Rounding {
  kHalfEven = 1,  // clamp(round_half_even(w * (1 / scale)) + zero_point, code_min, code_max)
  kTruncate = 2,  // clamp(trunc(w / scale), code_min, code_max); the zero point is 0
  kDoReFa = 3,    // round_half_even((tanh(w) / (2 max|tanh|) + 0.5) * code_max)
};

constexpr int kMaxBits = 16;  // of a code

struct QuantizationParameters {
  Formula formula = Formula::kAffine;
  Rounding rounding = Rounding::kHalfEven;
  int bits = 8;
  int32_t code_min = 0;
  int32_t code_max = 255;
  std::vector<float> scale;         // one, or one per channel or group; empty for kDoReFa
  std::vector<int32_t> zero_point;  // as many as scale
  std::optional<int> channel_axis;  // set when per channel or per group
  int64_t group_size = 0;           // consecutive weights of a channel with a scale; 0: all of them

  friend bool operator==(const QuantizationParameters&, const QuantizationParameters&);
};

// The minimum and maximum, per tensor (one each), per channel or per group. Groups are in C order:
// all of the first channel, then those of the second.
struct Range {
  std::vector<float> minimum;
  std::vector<float> maximum;
};

// The kinds of quantized activations.
enum class Activation { kOutput, kInput };

// What an answer contains in addition to the parameters.
enum class QuantizeReply { kCodes = 1, kValues = 2, kParameters = 3 };

struct QuantizedWeight {
  // Unset: before quant_start_step, values pass unchanged and `data` is empty.
  std::optional<QuantizationParameters> parameters;
  DataType dtype = DataType::kUInt8;  // of `data`
  Buffer data;                        // codes or values, as requested; empty for kParameters
};

// The answer for a layer's activations.
struct ActivationAnswer {
  std::optional<QuantizationParameters> parameters;  // unset: they pass unchanged at this time
  std::optional<Range> range;  // the moving average (EMA); unset: none was observed
};

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_TYPES_QUANTIZATION_H_
