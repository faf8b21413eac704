#include "nni_compression/types.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/numeric/bits.h"
#include "absl/strings/str_cat.h"
#include "compression/types/element_types.h"

namespace nni_compression {
namespace {

constexpr int64_t kMaxElements = (int64_t{1} << 48) - 1;
constexpr size_t kMaxDimensions = 64;

int64_t Product(const std::vector<int64_t>& shape) {
  int64_t elements = 1;
  for (const int64_t dimension : shape) elements *= dimension;
  return elements;
}

int64_t CountZeros(const Bytes& bits, int64_t elements) {
  int64_t ones = 0;
  const uint8_t* data = bits.data();
  int64_t i = 0;
  for (; i + 8 <= bits.size(); i += 8) {
    uint64_t word;
    std::memcpy(&word, data + i, sizeof(word));
    ones += absl::popcount(word);
  }
  for (; i < bits.size(); ++i) ones += absl::popcount(data[i]);
  return elements - ones;
}

// Reads the codes as T, and calls `value(code, channel)` for each.
template <typename T, typename Value>
void ForEachCode(const QuantizedTensor& tensor, std::vector<float>& out, Value value) {
  const auto& axis = tensor.parameters.channel_axis;
  int64_t inner = 1;
  int64_t channels = 1;
  if (axis) {
    channels = tensor.shape[*axis];
    for (size_t d = *axis + 1; d < tensor.shape.size(); ++d) inner *= tensor.shape[d];
  }
  if (const int64_t group_size = tensor.parameters.group_size; group_size > 0) {
    inner = group_size;
    channels = static_cast<int64_t>(out.size()) / group_size;
  }
  const uint8_t* bytes = tensor.data.data();
  for (size_t i = 0; i < out.size(); ++i) {
    T code;
    std::memcpy(&code, bytes + i * sizeof(T), sizeof(T));
    out[i] = value(static_cast<int32_t>(code), static_cast<int64_t>(i) / inner % channels);
  }
}

template <typename Value>
absl::Status DispatchCodes(const QuantizedTensor& tensor, std::vector<float>& out, Value value) {
  switch (tensor.dtype) {
    case DataType::kInt8:
      ForEachCode<int8_t>(tensor, out, value);
      return absl::OkStatus();
    case DataType::kUInt8:
      ForEachCode<uint8_t>(tensor, out, value);
      return absl::OkStatus();
    case DataType::kInt16:
      ForEachCode<int16_t>(tensor, out, value);
      return absl::OkStatus();
    case DataType::kUInt16:
      ForEachCode<uint16_t>(tensor, out, value);
      return absl::OkStatus();
    default:
      return absl::InternalError(
          absl::StrCat("codes of layer ", tensor.layer, " are ", DataTypeName(tensor.dtype)));
  }
}

}  // namespace

absl::string_view DataTypeName(DataType dtype) {
  if (dtype == DataType{}) return "unspecified";
  const ElementType* const type = FindElementType(static_cast<int>(dtype));
  return type == nullptr ? "unknown" : type->name;
}

absl::StatusOr<int64_t> ByteLength(DataType dtype, absl::Span<const int64_t> shape) {
  if (shape.empty() || shape.size() > kMaxDimensions) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the shape has ", shape.size(), " dimensions; it must have 1 to ", kMaxDimensions));
  }
  int64_t elements = 1;
  for (size_t d = 0; d < shape.size(); ++d) {
    if (shape[d] < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("shape[", d, "] is ", shape[d], "; it must be at least 1"));
    }
    if (shape[d] > kMaxElements / elements) {
      return absl::InvalidArgumentError(
          absl::StrCat("shape[", d, "] is ", shape[d], "; the product must be below 2^48"));
    }
    elements *= shape[d];
  }
  const ElementType* const type = FindElementType(static_cast<int>(dtype));
  const int64_t bits = type == nullptr ? 8 : type->bits;
  return (elements * bits + 7) / 8;
}

Bytes Bytes::Uninitialized(int64_t size) {
  Bytes bytes;
  bytes.data_ = std::shared_ptr<uint8_t[]>(new uint8_t[size]);
  bytes.size_ = size;
  return bytes;
}

Mask::Mask(std::string layer, std::vector<int64_t> shape, Bytes bits, double target_sparsity,
           int64_t epoch)
    : layer_(std::move(layer)),
      shape_(std::move(shape)),
      bits_(std::move(bits)),
      target_sparsity_(target_sparsity),
      epoch_(epoch),
      elements_(Product(shape_)),
      pruned_(CountZeros(bits_, elements_)) {}

absl::StatusOr<std::vector<float>> QuantizedTensor::Dequantize() const {
  if (unquantized || content != QuantizeReply::kCodes) {
    return absl::FailedPreconditionError(absl::StrCat("layer ", layer, " has no codes"));
  }
  std::vector<float> values(Product(shape));
  absl::Status status;
  if (parameters.formula == Formula::kDoReFa) {
    const float levels = static_cast<float>((int64_t{1} << parameters.bits) - 1);
    status = DispatchCodes(*this, values, [levels](int32_t code, int64_t) {
      return 2.0f * static_cast<float>(code) / levels - 1.0f;
    });
  } else {
    const auto& p = parameters;
    status = DispatchCodes(*this, values, [&p](int32_t code, int64_t channel) {
      const size_t c = p.channel_axis ? channel : 0;
      constexpr float kLargest = std::numeric_limits<float>::max();
      return std::clamp(static_cast<float>(code - p.zero_point[c]) * p.scale[c], -kLargest,
                        kLargest);
    });
  }
  if (!status.ok()) return status;
  return values;
}

}  // namespace nni_compression
