#include "server/calc_mask_call.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/convert.h"

namespace nni_compression::server {

namespace v1 = ::nni::compression::v1;

using compression::DataType;
using compression::Mask;
using compression::MaskAnswer;

absl::Status CalcMaskCall::OnOpen(wire::MessageReader& reader) {
  v1::CalcMaskRequest::Open open;
  if (absl::Status status = reader.Parse(&open); !status.ok()) return status;
  if (open.has_epoch()) epoch_ = open.epoch();
  return Join(open.session_id(), std::nullopt);
}

absl::StatusOr<TensorSink::Admission> CalcMaskCall::OnHeader(const v1::TensorHeader& header) {
  Expected expected = CheckHeader(header, {v1::TENSOR_ROLE_WEIGHT, v1::TENSOR_ROLE_MASK});
  if (!expected.admission.accepted) return expected.admission;
  if (header.role() == v1::TENSOR_ROLE_WEIGHT) {
    absl::Status status = CheckKind(compression::AlgorithmKind::kPruner);
    if (!status.ok()) return status;
    expected.admission.extra_bytes =
        compression::ByteLength(DataType::kBit, record().layer(expected.layer).elements);
  }
  AdmitPresent(header, &expected.admission);
  return expected.admission;
}

absl::Status CalcMaskCall::CheckClock(const compression::Session& session) const {
  if (!epoch_ || *epoch_ == session.clock().epoch) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("epoch is ", *epoch_, "; the session's is ",
                                                    session.clock().epoch, ": call UpdateEpoch"));
}

absl::Status CalcMaskCall::Apply(compression::Session& session, int layer, ReceivedTensor& tensor) {
  const compression::Layer& bound = session.layer(layer);

  const absl::StatusOr<MaskAnswer> answer = [&]() -> absl::StatusOr<MaskAnswer> {
    if (tensor.header.role() == v1::TENSOR_ROLE_WEIGHT) {
      return session.CalcMask(
          layer, {tensor.bytes.AsTensor(bound.dtype, bound.shape), tensor.statistics.get()});
    }
    absl::StatusOr<Mask> mask = Mask::FromBits(std::move(tensor.bytes), bound.elements);
    if (!mask.ok()) return mask.status();
    return session.SetMask(layer, *std::move(mask));
  }();
  tensor.bytes = {};
  if (!answer.ok()) {
    AnswerError(tensor.header, answer.status());
    return absl::OkStatus();
  }
  Reservation memory = std::move(tensor.memory);
  memory.ShrinkTo(answer->mask.bits().size());
  Answer(tensor, *answer, std::move(memory));
  return absl::OkStatus();
}

void CalcMaskCall::Answer(const ReceivedTensor& tensor, const MaskAnswer& answer,
                          Reservation memory) {
  const compression::Buffer& bits = answer.mask.bits();
  auto fields = std::make_unique<v1::CalcMaskResponse>();
  v1::MaskResult* result = fields->add_results();
  result->set_answers(tensor.header.index());
  result->set_layer(tensor.header.layer());
  result->set_achieved_sparsity(answer.mask.sparsity());
  result->set_target_sparsity(answer.target_sparsity.value_or(answer.mask.sparsity()));
  result->set_epoch(answer.epoch);
  v1::TensorHeader* header = fields->add_headers();
  header->set_index(tensor.header.index());
  header->set_layer(tensor.header.layer());
  header->set_role(v1::TENSOR_ROLE_MASK);
  header->set_dtype(v1::DATA_TYPE_BIT);
  *header->mutable_shape() = tensor.header.shape();
  header->set_byte_length(static_cast<uint64_t>(bits.size()));
  header->set_answers(tensor.header.index());

  Reply reply;
  AddResult(tensor, bits, header, &reply);
  reply.fields = std::move(fields);
  reply.memory = std::make_shared<Reservation>(std::move(memory));
  CountSent(bits.size());
  Answered(std::move(reply));
}

void CalcMaskCall::AnswerError(const v1::TensorHeader& header, const absl::Status& error) {
  auto fields = std::make_unique<v1::CalcMaskResponse>();
  v1::MaskResult* result = fields->add_results();
  result->set_answers(header.index());
  result->set_layer(header.layer());
  ToProto(error, result->mutable_error());
  Reply reply;
  reply.fields = std::move(fields);
  Push(std::move(reply));
}

}  // namespace nni_compression::server
