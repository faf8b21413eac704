#include "server/quantize_weight_call.h"

#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/convert.h"

namespace nni_compression::server {

namespace v1 = ::nni::compression::v1;

using compression::Buffer;
using compression::DataType;
using compression::QuantizedWeight;
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

absl::Status QuantizeWeightCall::OnOpen(wire::MessageReader& reader) {
  v1::QuantizeWeightRequest::Open open;
  if (absl::Status status = reader.Parse(&open); !status.ok()) return status;
  if (open.has_step()) step_ = open.step();
  if (open.reply() < 0 || open.reply() > v1::QuantizeWeightRequest::REPLY_PARAMETERS) {
    return absl::InvalidArgumentError(
        absl::StrCat("open.reply is ", static_cast<int>(open.reply()), "; it must be in [0, ",
                     v1::QuantizeWeightRequest::REPLY_PARAMETERS, "]"));
  }
  if (open.reply() != v1::QuantizeWeightRequest::REPLY_UNSPECIFIED) {
    reply_ = static_cast<QuantizeReply>(open.reply());
  }
  return Join(open.session_id(), compression::AlgorithmKind::kQuantizer);
}

absl::StatusOr<TensorSink::Admission> QuantizeWeightCall::OnHeader(const v1::TensorHeader& header) {
  Expected expected = CheckHeader(header, {v1::TENSOR_ROLE_WEIGHT, v1::TENSOR_ROLE_RANGE});
  if (!expected.admission.accepted) return expected.admission;
  const compression::Layer& layer = record().layer(expected.layer);
  const std::vector<int64_t> range = record().RangeShape(expected.layer);
  int64_t& extra = expected.admission.extra_bytes;
  extra = kChannelBytes * (range.size() == 2 ? range[1] : 1);
  if (header.role() == v1::TENSOR_ROLE_WEIGHT && reply_ == QuantizeReply::kCodes) {
    extra += kMaxCodeBytes * layer.elements;
  } else if (header.role() == v1::TENSOR_ROLE_WEIGHT && reply_ == QuantizeReply::kValues) {
    extra += static_cast<int64_t>(header.byte_length());
  }
  AdmitPresent(header, &expected.admission);
  return expected.admission;
}

absl::Status QuantizeWeightCall::CheckClock(const compression::Session& session) const {
  if (!step_ || *step_ == session.clock().step) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("step is ", *step_, "; the session's is ", session.clock().step, ": call Step"));
}

absl::Status QuantizeWeightCall::Apply(compression::Session& session, int layer,
                                       ReceivedTensor& tensor) {
  const compression::Layer& bound = session.layer(layer);

  absl::StatusOr<QuantizedWeight> result =
      tensor.header.role() == v1::TENSOR_ROLE_RANGE
          ? session.QuantizeRange(layer, ToRange(tensor.bytes))
          : session.QuantizeWeight(
                layer, {tensor.bytes.AsTensor(bound.dtype, bound.shape), tensor.statistics.get()},
                reply_);
  tensor.bytes = {};
  if (!result.ok()) {
    AnswerError(tensor.header, result.status());
    return absl::OkStatus();
  }
  Reservation memory = std::move(tensor.memory);
  return Answer(tensor, bound, *std::move(result), std::move(memory));
}

absl::Status QuantizeWeightCall::Answer(const ReceivedTensor& tensor,
                                        const compression::Layer& layer, QuantizedWeight result,
                                        Reservation memory) {
  if (next_index_ > kMaxTensors - kTensorsPerReply) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the reply has more than ", kMaxTensors, " tensors; use several calls"));
  }
  auto fields = std::make_unique<v1::QuantizeWeightResponse>();
  v1::QuantizeResult* head = fields->add_results();
  head->set_answers(tensor.header.index());
  head->set_layer(tensor.header.layer());
  head->set_unquantized(!result.parameters.has_value());
  Reply reply;
  int64_t bytes = 0;
  if (result.parameters) {
    const compression::QuantizationParameters& parameters = *result.parameters;
    ToProto(parameters, head->mutable_parameters());
    if (result.data.size() > 0) {
      const bool codes = reply_ == QuantizeReply::kCodes;
      AddTensor(tensor, codes ? v1::TENSOR_ROLE_CODES : v1::TENSOR_ROLE_WEIGHT, result.dtype,
                layer.shape, std::move(result.data), fields.get(), &reply);
    }
    if (parameters.channel_axis) {
      const std::vector<int64_t> shape = {static_cast<int64_t>(parameters.scale.size())};
      AddTensor(tensor, v1::TENSOR_ROLE_SCALE, DataType::kFloat32, shape,
                ToBuffer(parameters.scale), fields.get(), &reply);
      AddTensor(tensor, v1::TENSOR_ROLE_ZERO_POINT, DataType::kInt32, shape,
                ToBuffer(parameters.zero_point), fields.get(), &reply);
    } else {
      ScalesToProto(parameters, head->mutable_parameters());
    }
  }
  head->set_tensors(static_cast<uint32_t>(reply.payloads.size()));
  for (const Payload& payload : reply.payloads) bytes += payload.bytes.size();
  memory.ShrinkTo(bytes);
  CountSent(bytes);
  reply.fields = std::move(fields);
  reply.memory = std::make_shared<Reservation>(std::move(memory));
  Answered(std::move(reply));
  return absl::OkStatus();
}

void QuantizeWeightCall::AddTensor(const ReceivedTensor& request, v1::TensorRole role,
                                   DataType dtype, absl::Span<const int64_t> shape, Buffer bytes,
                                   v1::QuantizeWeightResponse* fields, Reply* reply) {
  v1::TensorHeader* header = fields->add_headers();
  header->set_index(next_index_++);
  header->set_layer(request.header.layer());
  header->set_role(role);
  header->set_dtype(ToProto(dtype));
  header->mutable_shape()->Add(shape.begin(), shape.end());
  header->set_byte_length(static_cast<uint64_t>(bytes.size()));
  header->set_answers(request.header.index());
  AddResult(request, std::move(bytes), header, reply);
}

void QuantizeWeightCall::AnswerError(const v1::TensorHeader& header, const absl::Status& error) {
  auto fields = std::make_unique<v1::QuantizeWeightResponse>();
  v1::QuantizeResult* result = fields->add_results();
  result->set_answers(header.index());
  result->set_layer(header.layer());
  ToProto(error, result->mutable_error());
  Reply reply;
  reply.fields = std::move(fields);
  Push(std::move(reply));
}

}  // namespace nni_compression::server
