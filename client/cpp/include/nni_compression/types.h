// Tensors, masks and quantized weights as a C++ program sees them.
#ifndef NNI_COMPRESSION_TYPES_H_
#define NNI_COMPRESSION_TYPES_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace nni_compression {

// The type of a tensor's elements; the numbers are those of the wire.
enum class DataType {
  kFloat32 = 1,
  kFloat16 = 2,
  kBFloat16 = 3,
  kFloat64 = 4,
  kUInt8 = 5,
  kInt8 = 6,
  kUInt16 = 7,
  kInt16 = 8,
  kInt32 = 9,
  kInt64 = 10,
  kBool = 11,
  kBit = 12,  // packed: bit 0 of byte 0 is element 0
};

// "float32", "bit", ...
absl::string_view DataTypeName(DataType dtype);

// Payload bytes of a tensor. INVALID_ARGUMENT, naming the dimension, unless there are 1 to 64
// dimensions of at least 1 with a product below 2^48.
absl::StatusOr<int64_t> ByteLength(DataType dtype, absl::Span<const int64_t> shape);

// What a call uses a tensor for; the numbers are those of the wire.
enum class TensorRole {
  kWeight = 1,
  kMask = 2,            // CalcMask: the trainer's own mask; kBit with the weight's shape
  kGradient = 4,        // Step
  kOptimizerState = 5,  // Step
  kRange = 6,  // Step, QuantizeWeight: float32, [2], [2, channels] or [2, groups], minima, maxima
  kOutputRange = 9,  // Step: float32 [2], minimum and maximum of the outputs since the last step
  kInputRange = 10,  // Step: likewise, of the inputs
};

// A tensor that the caller owns. The bytes are little-endian, the elements in C order; they must
// not change before the call that uses them returns.
struct Tensor {
  std::string name;  // of the layer, as bound
  DataType dtype = DataType::kFloat32;
  std::vector<int64_t> shape;
  absl::Span<const uint8_t> bytes;
  TensorRole role = TensorRole::kWeight;
};

// A tensor over an array of numbers: float and double, and the integer types.
template <typename T>
Tensor MakeTensor(std::string name, std::vector<int64_t> shape, absl::Span<const T> values,
                  TensorRole role = TensorRole::kWeight) {
  constexpr DataType kDataType = std::is_same_v<T, float>      ? DataType::kFloat32
                                 : std::is_same_v<T, double>   ? DataType::kFloat64
                                 : std::is_same_v<T, uint8_t>  ? DataType::kUInt8
                                 : std::is_same_v<T, int8_t>   ? DataType::kInt8
                                 : std::is_same_v<T, uint16_t> ? DataType::kUInt16
                                 : std::is_same_v<T, int16_t>  ? DataType::kInt16
                                 : std::is_same_v<T, int32_t>  ? DataType::kInt32
                                                               : DataType::kInt64;
  static_assert(std::is_arithmetic_v<T> &&
                (kDataType != DataType::kInt64 ||
                 (std::is_integral_v<T> && std::is_signed_v<T> && sizeof(T) == 8)));
  return Tensor{std::move(name), kDataType, std::move(shape),
                absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(values.data()),
                                    values.size() * sizeof(T)),
                role};
}

// Memory of a result. Copies share it. Thread-compatible.
class Bytes {
 public:
  Bytes() = default;
  static Bytes Uninitialized(int64_t size);

  uint8_t* data() { return data_.get(); }
  const uint8_t* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  absl::Span<const uint8_t> span() const { return {data_.get(), static_cast<size_t>(size_)}; }

 private:
  std::shared_ptr<uint8_t[]> data_;
  int64_t size_ = 0;
};

// A layer's mask: one bit per weight in C order, 1 = kept. Immutable; copies share the bits.
// Thread-safe.
class Mask {
 public:
  Mask(std::string layer, std::vector<int64_t> shape, Bytes bits, double target_sparsity,
       int64_t epoch);

  const std::string& layer() const { return layer_; }
  const std::vector<int64_t>& shape() const { return shape_; }
  int64_t elements() const { return elements_; }
  int64_t pruned() const { return pruned_; }

  bool kept(int64_t i) const { return (bits_.data()[i >> 3] >> (i & 7)) & 1; }
  absl::Span<const uint8_t> bits() const { return bits_.span(); }

  // Fraction of the weights removed, in [0, 1]: by this mask, and the target at its epoch.
  double sparsity() const { return static_cast<double>(pruned_) / static_cast<double>(elements_); }
  double target_sparsity() const { return target_sparsity_; }
  int64_t epoch() const { return epoch_; }

 private:
  std::string layer_;
  std::vector<int64_t> shape_;
  Bytes bits_;
  double target_sparsity_;
  int64_t epoch_;
  int64_t elements_ = 0;
  int64_t pruned_ = 0;
};

// How codes are dequantized.
enum class Formula { kAffine = 1, kDoReFa = 2 };

// How a float is quantized; compression.proto has the formulas.
enum class Rounding { kHalfEven = 1, kTruncate = 2, kDoReFa = 3 };

struct QuantizationParameters {
  Formula formula = Formula::kAffine;
  Rounding rounding = Rounding::kHalfEven;
  int bits = 8;
  int32_t code_min = 0;
  int32_t code_max = 0;
  std::vector<float> scale;         // one, or one per channel or group; empty for kDoReFa
  std::vector<int32_t> zero_point;  // as many as scale
  std::optional<int> channel_axis;  // set when per channel or per group

  // Unless it is 0, scale[i] is that of the weights [i * group_size, (i + 1) * group_size), C
  // order.
  int64_t group_size = 0;
};

// Statistics of a layer that a session keeps, by name; compression.proto lists them.
using Memory = std::map<std::string, std::vector<float>>;

// What QuantizeWeight returns in addition to the parameters; the numbers are those of the wire.
enum class QuantizeReply { kCodes = 1, kValues = 2, kParameters = 3 };

// A layer's quantized weight. Thread-compatible.
struct QuantizedTensor {
  std::string layer;
  std::vector<int64_t> shape;

  // What the session keeps of the layer, for InitialMemory.
  Memory memory;

  // Before quant_start_step: the weight is used as it is, and the fields below are not set.
  bool unquantized = false;
  QuantizationParameters parameters;

  // Codes (int8, uint8, int16 or uint16) or values (the weight's dtype), as asked for; empty for
  // kParameters.
  QuantizeReply content = QuantizeReply::kParameters;
  DataType dtype = DataType::kUInt8;
  Bytes data;

  // The dequantized codes as float32. FAILED_PRECONDITION without codes.
  absl::StatusOr<std::vector<float>> Dequantize() const;
};

// All values, or the first error: for callers who want all or nothing.
template <typename T>
absl::StatusOr<std::vector<T>> AllOrError(std::vector<absl::StatusOr<T>> results) {
  std::vector<T> values;
  values.reserve(results.size());
  for (absl::StatusOr<T>& result : results) {
    if (!result.ok()) return result.status();
    values.push_back(*std::move(result));
  }
  return values;
}

}  // namespace nni_compression

#endif  // NNI_COMPRESSION_TYPES_H_
