#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/replies.h"

namespace nni_compression::internal {
namespace {

// Roles that only replies have.
constexpr TensorRole kCodesRole = static_cast<TensorRole>(v1::TENSOR_ROLE_CODES);
constexpr TensorRole kScaleRole = static_cast<TensorRole>(v1::TENSOR_ROLE_SCALE);
constexpr TensorRole kZeroPointRole = static_cast<TensorRole>(v1::TENSOR_ROLE_ZERO_POINT);

constexpr int64_t kMaxTensorsPerAnswer = 3;
constexpr uint64_t kMaxGroupSize = (uint64_t{1} << 48) - 1;

template <typename T>
std::vector<T> Numbers(const Bytes& bytes) {
  std::vector<T> numbers(bytes.size() / sizeof(T));
  std::memcpy(numbers.data(), bytes.data(), bytes.size());
  return numbers;
}

bool IsCodeType(DataType dtype) {
  return dtype == DataType::kInt8 || dtype == DataType::kUInt8 || dtype == DataType::kInt16 ||
         dtype == DataType::kUInt16;
}

int64_t Elements(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

// How many scales there must be. INTERNAL for an axis or groups that the shape does not have.
absl::StatusOr<int64_t> Channels(const Tensor& sent, const QuantizationParameters& parameters) {
  if (!parameters.channel_axis) return 1;
  if (sent.role == TensorRole::kRange) return sent.shape.back();
  if (*parameters.channel_axis >= static_cast<int>(sent.shape.size())) {
    return BadReply("a channel axis that the weight does not have");
  }
  if (parameters.group_size > 0) {
    const int64_t elements = Elements(sent.shape);
    if (elements % parameters.group_size != 0)
      return BadReply("groups that do not divide the weight");
    return elements / parameters.group_size;
  }
  return sent.shape[*parameters.channel_axis];
}

}  // namespace

absl::StatusOr<QuantizationParameters> ParametersOf(const v1::QuantizationParameters& in) {
  QuantizationParameters out;
  if (in.formula() != v1::FORMULA_AFFINE && in.formula() != v1::FORMULA_DOREFA) {
    return BadReply(absl::StrCat("formula ", static_cast<int>(in.formula())));
  }
  if (in.bits() < 1 || in.bits() > 16) return BadReply(absl::StrCat("bits are ", in.bits()));
  out.formula = static_cast<Formula>(in.formula());
  out.rounding = static_cast<Rounding>(in.rounding());
  out.bits = static_cast<int>(in.bits());
  out.code_min = in.code_min();
  out.code_max = in.code_max();
  out.scale.assign(in.scale().begin(), in.scale().end());
  out.zero_point.assign(in.zero_point().begin(), in.zero_point().end());
  if (in.group_size() > kMaxGroupSize) {
    return BadReply(absl::StrCat("groups of ", in.group_size()));
  }
  out.group_size = static_cast<int64_t>(in.group_size());
  if (in.has_channel_axis()) out.channel_axis = static_cast<int>(std::min(in.channel_axis(), 64u));
  return out;
}

Memory MemoryOf(const google::protobuf::RepeatedPtrField<v1::Memory>& in) {
  Memory out;
  for (const v1::Memory& one : in) out[one.name()].assign(one.values().begin(), one.values().end());
  return out;
}

absl::StatusOr<int64_t> QuantizeReader::ExpectedTensors(const Tensor&,
                                                        const v1::QuantizeResult& result) {
  if (result.tensors() > kMaxTensorsPerAnswer) {
    return BadReply(absl::StrCat("an answer of ", result.tensors(), " tensors"));
  }
  return result.tensors();
}

absl::Status QuantizeReader::CheckHeader(const Tensor& sent, const v1::QuantizeResult&,
                                         const ReceivedTensor& tensor) {
  bool good = false;
  if (tensor.role == kCodesRole) {
    good = IsCodeType(tensor.dtype) && tensor.shape == sent.shape;
  } else if (tensor.role == TensorRole::kWeight) {
    good = tensor.dtype == sent.dtype && tensor.shape == sent.shape;
  } else if (tensor.role == kScaleRole || tensor.role == kZeroPointRole) {
    const DataType dtype = tensor.role == kScaleRole ? DataType::kFloat32 : DataType::kInt32;
    good = tensor.dtype == dtype && tensor.shape.size() == 1 &&
           Elements(sent.shape) % tensor.shape[0] == 0;
  }
  return good ? absl::OkStatus() : BadReply("a tensor that does not belong to its weight");
}

absl::Status QuantizeReader::OnAnswer(size_t index, Answer answer) {
  const v1::QuantizeResult& result = answer.result;
  if (result.has_error()) {
    results_[index] = StatusOf(result.error());
    return absl::OkStatus();
  }
  const Tensor& sent = sent_tensor(index);
  QuantizedTensor out;
  out.layer = sent.name;
  out.shape = sent.shape;
  out.memory = MemoryOf(result.memory());
  out.unquantized = result.unquantized();
  if (out.unquantized) {
    results_[index] = std::move(out);
    return absl::OkStatus();
  }
  auto parameters = ParametersOf(result.parameters());
  if (!parameters.ok()) return parameters.status();
  out.parameters = *std::move(parameters);
  for (ReceivedTensor& tensor : answer.tensors) {
    if (tensor.role == kScaleRole) {
      out.parameters.scale = Numbers<float>(tensor.bytes);
    } else if (tensor.role == kZeroPointRole) {
      out.parameters.zero_point = Numbers<int32_t>(tensor.bytes);
    } else {
      out.content = tensor.role == kCodesRole ? QuantizeReply::kCodes : QuantizeReply::kValues;
      out.dtype = tensor.dtype;
      out.data = std::move(tensor.bytes);
    }
  }
  if (out.parameters.formula == Formula::kAffine) {
    const auto channels = Channels(sent, out.parameters);
    if (!channels.ok()) return channels.status();
    if (static_cast<int64_t>(out.parameters.scale.size()) != *channels ||
        static_cast<int64_t>(out.parameters.zero_point.size()) != *channels) {
      return BadReply(absl::StrCat("layer ", out.layer, " has ", out.parameters.scale.size(),
                                   " scales and ", out.parameters.zero_point.size(),
                                   " zero points for ", *channels, " channels"));
    }
  }
  if (sent.role == TensorRole::kWeight && out.content != reply_) {
    return BadReply(absl::StrCat("layer ", out.layer, " was not answered as asked"));
  }
  results_[index] = std::move(out);
  return absl::OkStatus();
}

}  // namespace nni_compression::internal
