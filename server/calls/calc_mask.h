// CalcMask: weights in, masks out; or counts in, thresholds out.
#ifndef NNI_COMPRESSION_SERVER_CALLS_CALC_MASK_H_
#define NNI_COMPRESSION_SERVER_CALLS_CALC_MASK_H_

#include <google/protobuf/message_lite.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "server/calls/layer_handler.h"

namespace nni_compression::server {

// A Method of LayerHandler.
class CalcMask {
 public:
  using Open = nni::compression::v1::CalcMaskRequest::Open;
  using Result = compression::CountsAnswer;

  static constexpr nni::compression::v1::TensorRole kRoles[] = {
      nni::compression::v1::TENSOR_ROLE_WEIGHT, nni::compression::v1::TENSOR_ROLE_COUNTS,
      nni::compression::v1::TENSOR_ROLE_MASK};
  static std::optional<compression::AlgorithmKind> Kind() { return std::nullopt; }
  static std::optional<compression::AlgorithmKind> KindFor(nni::compression::v1::TensorRole role);

  absl::Status Configure(const Open& open);
  int64_t ResultBytes(const SessionRecord& record, int layer,
                      const nni::compression::v1::TensorHeader& header) const;
  static int64_t UnstoredBytes(const nni::compression::v1::TensorHeader&) { return 0; }
  absl::Status CheckClock(const compression::Session& session) const;
  static bool MayWait(const SessionRecord& record, int layer) { return record.joint(layer); }
  bool Waits(const compression::Session& session, const ReceivedTensor& tensor) const;
  std::vector<absl::StatusOr<Result>> ComputeTogether(
      compression::Session& session, absl::Span<ReceivedTensor* const> tensors) const;
  absl::StatusOr<Result> Compute(compression::Session& session, ReceivedTensor& tensor) const;
  absl::StatusOr<Reply> Answer(const compression::Session& session, const ReceivedTensor& tensor,
                               const Result& result, const LayerTensors& tensors) const;
  static std::unique_ptr<google::protobuf::MessageLite> Refusal(
      const nni::compression::v1::TensorHeader& header, const absl::Status& error);

 private:
  // Of tensors that are decided about together.
  static absl::StatusOr<std::vector<Result>> ComputeRule(compression::Session& session,
                                                         absl::Span<ReceivedTensor* const> tensors);
  static Reply AnswerThreshold(const ReceivedTensor& tensor,
                               const compression::ThresholdAnswer& result);

  std::optional<int64_t> epoch_;  // the trainer's, to be checked
};

using CalcMaskHandler = LayerHandler<CalcMask>;

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_CALLS_CALC_MASK_H_
