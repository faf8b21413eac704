#include "server/calls/quantize_weight.h"

#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/convert/convert.h"

namespace nni_compression::server {

namespace v1 = ::nni::compression::v1;

using compression::Buffer;
using compression::DataType;
using compression::QuantizeReply;

namespace {

constexpr uint32_t kTensorsPerReply = 3;
constexpr int64_t kMaxCodeBytes = 2;
constexpr int64_t kChannelBytes = sizeof(float) + sizeof(int32_t);

template <typename T>
Buffer ToBuffer(const std::vector<T>& values) {
  Buffer bytes = Buffer::Allocate(static_cast<int64_t>(values.size() * sizeof(T)));
  std::memcpy(bytes.data(), values.data(), values.size() * sizeof(T));
  return bytes;
}

}  // namespace

absl::Status QuantizeWeight::Configure(const Open& open) {
  if (open.has_step()) step_ = open.step();
  if (open.reply() < 0 || open.reply() > v1::QuantizeWeightRequest::REPLY_PARAMETERS) {
    return absl::InvalidArgumentError(
        absl::StrCat("open.reply is ", static_cast<int>(open.reply()), "; it must be in [0, ",
                     v1::QuantizeWeightRequest::REPLY_PARAMETERS, "]"));
  }
  if (open.reply() != v1::QuantizeWeightRequest::REPLY_UNSPECIFIED) {
    reply_ = static_cast<QuantizeReply>(open.reply());
  }
  return absl::OkStatus();
}

int64_t QuantizeWeight::ResultBytes(const SessionRecord& record, int layer,
                                    const v1::TensorHeader& header) const {
  const std::vector<int64_t> range = record.RangeShape(layer);
  int64_t parameters = kChannelBytes * (range.size() == 2 ? range[1] : 1);
  if (header.role() != v1::TENSOR_ROLE_WEIGHT) return parameters;
  parameters += record.work_bytes(layer);
  if (reply_ == QuantizeReply::kCodes) {
    return parameters + kMaxCodeBytes * record.layer(layer).elements;
  }
  if (reply_ == QuantizeReply::kValues) {
    return parameters + static_cast<int64_t>(header.byte_length());
  }
  return parameters;
}

absl::Status QuantizeWeight::CheckClock(const compression::Session& session) const {
  if (!step_ || *step_ == session.clock().step) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("step is ", *step_, "; the session's is ", session.clock().step, ": call Step"));
}

absl::StatusOr<QuantizeWeight::Result> QuantizeWeight::Compute(compression::Session& session,
                                                               ReceivedTensor& tensor) const {
  if (tensor.header.role() == v1::TENSOR_ROLE_RANGE) {
    return session.QuantizeRange(tensor.layer, ToRange(tensor.bytes));
  }
  const compression::Layer& layer = session.layer(tensor.layer);
  return session.QuantizeWeight(
      tensor.layer, {tensor.bytes.AsTensor(layer.dtype, layer.shape), tensor.statistics.get()},
      reply_);
}

absl::StatusOr<Reply> QuantizeWeight::Answer(const compression::Session& session,
                                             const ReceivedTensor& tensor, Result result,
                                             const LayerTensors& tensors) {
  if (next_index_ > kMaxTensors - kTensorsPerReply) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the reply has more than ", kMaxTensors, " tensors; use several calls"));
  }
  auto fields = std::make_unique<v1::QuantizeWeightResponse>();
  v1::QuantizeResult* head = fields->add_results();
  head->set_answers(tensor.header.index());
  head->set_layer(tensor.header.layer());
  head->set_unquantized(!result.parameters.has_value());
  ToProto(session.RememberedOf(tensor.layer), head->mutable_memory());
  Reply reply;
  const auto add = [&](v1::TensorRole role, DataType dtype, absl::Span<const int64_t> shape,
                       Buffer bytes) {
    v1::TensorHeader* header = AddHeader(tensor, role, dtype, shape, bytes.size(), fields.get());
    tensors.AddResult(tensor, std::move(bytes), header, &reply);
  };
  if (result.parameters) {
    const compression::QuantizationParameters& parameters = *result.parameters;
    ToProto(parameters, head->mutable_parameters());
    if (result.data.size() > 0) {
      const bool codes = reply_ == QuantizeReply::kCodes;
      add(codes ? v1::TENSOR_ROLE_CODES : v1::TENSOR_ROLE_WEIGHT, result.dtype,
          session.layer(tensor.layer).shape, std::move(result.data));
    }
    if (parameters.channel_axis) {
      const std::vector<int64_t> shape = {static_cast<int64_t>(parameters.scale.size())};
      add(v1::TENSOR_ROLE_SCALE, DataType::kFloat32, shape, ToBuffer(parameters.scale));
      add(v1::TENSOR_ROLE_ZERO_POINT, DataType::kInt32, shape, ToBuffer(parameters.zero_point));
    } else {
      ScalesToProto(parameters, head->mutable_parameters());
    }
  }
  head->set_tensors(static_cast<uint32_t>(reply.payloads.size()));
  reply.fields = std::move(fields);
  return reply;
}

v1::TensorHeader* QuantizeWeight::AddHeader(const ReceivedTensor& request, v1::TensorRole role,
                                            DataType dtype, absl::Span<const int64_t> shape,
                                            int64_t byte_length,
                                            v1::QuantizeWeightResponse* fields) {
  v1::TensorHeader* header = fields->add_headers();
  header->set_index(next_index_++);
  header->set_layer(request.header.layer());
  header->set_role(role);
  header->set_dtype(ToProto(dtype));
  header->mutable_shape()->Add(shape.begin(), shape.end());
  header->set_byte_length(static_cast<uint64_t>(byte_length));
  header->set_answers(request.header.index());
  return header;
}

std::unique_ptr<google::protobuf::MessageLite> QuantizeWeight::Refusal(
    const v1::TensorHeader& header, const absl::Status& error) {
  auto fields = std::make_unique<v1::QuantizeWeightResponse>();
  v1::QuantizeResult* result = fields->add_results();
  result->set_answers(header.index());
  result->set_layer(header.layer());
  ToProto(error, result->mutable_error());
  return fields;
}

}  // namespace nni_compression::server
