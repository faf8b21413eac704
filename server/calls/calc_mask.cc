#include "server/calls/calc_mask.h"

#include <map>
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
  return compression::ByteLength(compression::DataType::kBit, record.layer(layer).elements) +
         record.work_bytes(layer);
}

absl::Status CalcMask::CheckClock(const compression::Session& session) const {
  if (!epoch_ || *epoch_ == session.clock().epoch) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("epoch is ", *epoch_, "; the session's is ",
                                                    session.clock().epoch, ": call UpdateEpoch"));
}

bool CalcMask::Waits(const compression::Session& session, const ReceivedTensor& tensor) const {
  return tensor.header.role() == v1::TENSOR_ROLE_WEIGHT && session.IsJoint(tensor.layer) &&
         session.IsStale(tensor.layer);
}

std::vector<absl::StatusOr<CalcMask::Result>> CalcMask::ComputeTogether(
    compression::Session& session, absl::Span<ReceivedTensor* const> tensors) const {
  // A rule fails by itself.
  std::map<const compression::PlannedRule*, std::vector<size_t>> rules;
  for (size_t i = 0; i < tensors.size(); ++i) {
    rules[session.plan().layers[tensors[i]->layer].planned].push_back(i);
  }
  std::vector<absl::StatusOr<Result>> results(tensors.size(), absl::UnknownError("no result"));
  for (const auto& entry : rules) {
    std::vector<compression::LayerWeight> weights;
    for (const size_t i : entry.second) {
      const ReceivedTensor& tensor = *tensors[i];
      const compression::Layer& layer = session.layer(tensor.layer);
      weights.push_back({tensor.layer, tensor.bytes.AsTensor(layer.dtype, layer.shape)});
    }
    absl::StatusOr<std::vector<Result>> masks = session.CalcMasks(weights);
    for (size_t k = 0; k < entry.second.size(); ++k) {
      absl::StatusOr<Result>& result = results[entry.second[k]];
      if (masks.ok()) {
        result = std::move((*masks)[k]);
      } else {
        result = masks.status();
      }
    }
  }
  return results;
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
