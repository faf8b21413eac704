#include "server/calls/calc_mask.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/convert/convert.h"

namespace nni_compression::server {

namespace v1 = ::nni::compression::v1;

using compression::Mask;

absl::Status CalcMask::Configure(const Open& open) {
  if (open.has_epoch()) epoch_ = open.epoch();
  return absl::OkStatus();
}

std::optional<compression::AlgorithmKind> CalcMask::KindFor(v1::TensorRole role) {
  // Sessions of quantizers accept masks, too.
  if (role == v1::TENSOR_ROLE_MASK) return std::nullopt;
  return compression::AlgorithmKind::kPruner;
}

int64_t CalcMask::ResultBytes(const SessionRecord& record, int layer,
                              const v1::TensorHeader& header) const {
  if (header.role() == v1::TENSOR_ROLE_MASK) return 0;  // the mask itself is the result
  return compression::ByteLength(compression::DataType::kBit, record.layer(layer).elements);
}

absl::Status CalcMask::CheckClock(const compression::Session& session) const {
  if (!epoch_ || *epoch_ == session.clock().epoch) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("epoch is ", *epoch_, "; the session's is ",
                                                    session.clock().epoch, ": call UpdateEpoch"));
}

absl::StatusOr<CalcMask::Result> CalcMask::Compute(compression::Session& session,
                                                   ReceivedTensor& tensor) const {
  const compression::Layer& layer = session.layer(tensor.layer);
  if (tensor.header.role() == v1::TENSOR_ROLE_WEIGHT) {
    return session.CalcMask(
        tensor.layer, {tensor.bytes.AsTensor(layer.dtype, layer.shape), tensor.statistics.get()});
  }
  absl::StatusOr<Mask> mask = Mask::FromBits(std::move(tensor.bytes), layer.elements);
  if (!mask.ok()) return mask.status();
  return session.SetMask(tensor.layer, *std::move(mask));
}

absl::StatusOr<Reply> CalcMask::Answer(const compression::Session& /*session*/,
                                       const ReceivedTensor& tensor, const Result& result,
                                       const LayerTensors& tensors) const {
  const compression::Buffer& bits = result.mask.bits();
  auto fields = std::make_unique<v1::CalcMaskResponse>();
  v1::MaskResult* answer = fields->add_results();
  answer->set_answers(tensor.header.index());
  answer->set_layer(tensor.header.layer());
  answer->set_achieved_sparsity(result.mask.sparsity());
  answer->set_target_sparsity(result.target_sparsity.value_or(result.mask.sparsity()));
  answer->set_epoch(result.epoch);
  v1::TensorHeader* header = fields->add_headers();
  header->set_index(tensor.header.index());
  header->set_layer(tensor.header.layer());
  header->set_role(v1::TENSOR_ROLE_MASK);
  header->set_dtype(v1::DATA_TYPE_BIT);
  *header->mutable_shape() = tensor.header.shape();
  header->set_byte_length(static_cast<uint64_t>(bits.size()));
  header->set_answers(tensor.header.index());
  Reply reply;
  tensors.AddResult(tensor, bits, header, &reply);
  reply.fields = std::move(fields);
  return reply;
}

std::unique_ptr<google::protobuf::MessageLite> CalcMask::Refusal(const v1::TensorHeader& header,
                                                                 const absl::Status& error) {
  auto fields = std::make_unique<v1::CalcMaskResponse>();
  v1::MaskResult* result = fields->add_results();
  result->set_answers(header.index());
  result->set_layer(header.layer());
  ToProto(error, result->mutable_error());
  return fields;
}

}  // namespace nni_compression::server
