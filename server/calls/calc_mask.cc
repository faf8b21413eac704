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
  const int64_t mask =
      compression::ByteLength(compression::DataType::kBit, record.layer(layer).elements);
  if (header.role() == v1::TENSOR_ROLE_COUNTS) {
    return mask + kCountsFactor * static_cast<int64_t>(header.byte_length());
  }
  return mask + record.work_bytes(layer);
}

absl::Status CalcMask::CheckClock(const compression::Session& session) const {
  if (!epoch_ || *epoch_ == session.clock().epoch) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("epoch is ", *epoch_, "; the session's is ",
                                                    session.clock().epoch, ": call UpdateEpoch"));
}

bool CalcMask::Waits(const compression::Session& session, const ReceivedTensor& tensor) const {
  return tensor.header.role() != v1::TENSOR_ROLE_MASK && session.IsJoint(tensor.layer) &&
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
    std::vector<ReceivedTensor*> of_rule;
    of_rule.reserve(entry.second.size());
    for (const size_t i : entry.second) of_rule.push_back(tensors[i]);
    absl::StatusOr<std::vector<Result>> answers = ComputeRule(session, of_rule);
    for (size_t k = 0; k < entry.second.size(); ++k) {
      absl::StatusOr<Result>& result = results[entry.second[k]];
      if (answers.ok()) {
        result = std::move((*answers)[k]);
      } else {
        result = answers.status();
      }
    }
  }
  return results;
}

absl::StatusOr<std::vector<CalcMask::Result>> CalcMask::ComputeRule(
    compression::Session& session, absl::Span<ReceivedTensor* const> tensors) {
  std::vector<compression::LayerWeight> weights;
  std::vector<compression::LayerCounts> counts;
  for (const ReceivedTensor* tensor : tensors) {
    if (tensor->header.role() == v1::TENSOR_ROLE_COUNTS) {
      auto rounds = ToCounts(tensor->header, tensor->bytes);
      if (!rounds.ok()) return rounds.status();
      counts.push_back({tensor->layer, *std::move(rounds)});
    } else {
      const compression::Layer& layer = session.layer(tensor->layer);
      weights.push_back({tensor->layer, tensor->bytes.AsTensor(layer.dtype, layer.shape)});
    }
  }
  if (weights.empty()) return session.CalcThresholds(counts);
  if (!counts.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer '", session.layer(counts.front().layer).name,
                     "' has counts, and layer '", session.layer(weights.front().layer).name,
                     "', which is decided about with it, a weight; all must have the same"));
  }
  absl::StatusOr<std::vector<compression::MaskAnswer>> masks = session.CalcMasks(weights);
  if (!masks.ok()) return masks.status();
  return std::vector<Result>(masks->begin(), masks->end());
}

absl::StatusOr<CalcMask::Result> CalcMask::Compute(compression::Session& session,
                                                   ReceivedTensor& tensor) const {
  const compression::Layer& layer = session.layer(tensor.layer);
  if (tensor.header.role() == v1::TENSOR_ROLE_COUNTS) {
    ReceivedTensor* const only = &tensor;
    auto answers = ComputeRule(session, absl::MakeConstSpan(&only, 1));
    if (!answers.ok()) return answers.status();
    return std::move(answers->front());
  }
  if (tensor.header.role() == v1::TENSOR_ROLE_WEIGHT) {
    return session.CalcMask(
        tensor.layer, {tensor.bytes.AsTensor(layer.dtype, layer.shape), tensor.statistics.get()});
  }
  absl::StatusOr<Mask> mask = Mask::FromBits(std::move(tensor.bytes), layer.elements);
  if (!mask.ok()) return mask.status();
  return session.SetMask(tensor.layer, *std::move(mask));
}

Reply CalcMask::AnswerThreshold(const ReceivedTensor& tensor,
                                const compression::ThresholdAnswer& result) {
  const compression::Threshold& found = result.threshold;
  const double sparsity = static_cast<double>(found.pruned) / static_cast<double>(result.elements);
  auto fields = std::make_unique<v1::CalcMaskResponse>();
  v1::MaskResult* answer = fields->add_results();
  answer->set_answers(tensor.header.index());
  answer->set_layer(tensor.header.layer());
  answer->set_achieved_sparsity(sparsity);
  answer->set_target_sparsity(result.target_sparsity.value_or(sparsity));
  answer->set_epoch(result.epoch);
  v1::Threshold* threshold = answer->mutable_threshold();
  threshold->set_known_bits(static_cast<uint32_t>(found.known_bits));
  threshold->set_key(found.key);
  threshold->set_ties(static_cast<uint64_t>(found.ties));
  threshold->set_pruned(static_cast<uint64_t>(found.pruned));
  Reply reply;
  reply.fields = std::move(fields);
  return reply;
}

absl::StatusOr<Reply> CalcMask::Answer(const compression::Session& session,
                                       const ReceivedTensor& tensor, const Result& result,
                                       const LayerTensors& tensors) const {
  if (const auto* threshold = std::get_if<compression::ThresholdAnswer>(&result)) {
    return AnswerThreshold(tensor, *threshold);
  }
  const auto& masked = std::get<compression::MaskAnswer>(result);
  const compression::Buffer& bits = masked.mask.bits();
  auto fields = std::make_unique<v1::CalcMaskResponse>();
  v1::MaskResult* answer = fields->add_results();
  answer->set_answers(tensor.header.index());
  answer->set_layer(tensor.header.layer());
  answer->set_achieved_sparsity(masked.mask.sparsity());
  answer->set_target_sparsity(masked.target_sparsity.value_or(masked.mask.sparsity()));
  answer->set_epoch(masked.epoch);
  v1::TensorHeader* header = fields->add_headers();
  header->set_index(tensor.header.index());
  header->set_layer(tensor.header.layer());
  header->set_role(v1::TENSOR_ROLE_MASK);
  header->set_dtype(v1::DATA_TYPE_BIT);
  for (const int64_t size : session.layer(tensor.layer).shape) header->add_shape(size);
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
