// QuantizeWeight: weights or ranges in, quantized weights or parameters out.
#ifndef NNI_COMPRESSION_SERVER_CALLS_QUANTIZE_WEIGHT_H_
#define NNI_COMPRESSION_SERVER_CALLS_QUANTIZE_WEIGHT_H_

#include <google/protobuf/message_lite.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "server/calls/layer_handler.h"

namespace nni_compression::server {

// A Method of LayerHandler.
class QuantizeWeight : public AnsweredApart<compression::QuantizedWeight> {
 public:
  using Open = nni::compression::v1::QuantizeWeightRequest::Open;

  static constexpr nni::compression::v1::TensorRole kRoles[] = {
      nni::compression::v1::TENSOR_ROLE_WEIGHT, nni::compression::v1::TENSOR_ROLE_RANGE};
  static std::optional<compression::AlgorithmKind> Kind() {
    return compression::AlgorithmKind::kQuantizer;
  }

  absl::Status Configure(const Open& open);
  int64_t ResultBytes(const SessionRecord& record, int layer,
                      const nni::compression::v1::TensorHeader& header) const;
  static int64_t UnstoredBytes(const nni::compression::v1::TensorHeader&) { return 0; }
  absl::Status CheckClock(const compression::Session& session) const;
  absl::StatusOr<Result> Compute(compression::Session& session, ReceivedTensor& tensor) const;
  absl::StatusOr<Reply> Answer(const compression::Session& session, const ReceivedTensor& tensor,
                               Result result, const LayerTensors& tensors);
  static std::unique_ptr<google::protobuf::MessageLite> Refusal(
      const nni::compression::v1::TensorHeader& header, const absl::Status& error);

 private:
  // Adds a header to a reply that answers `request`.
  nni::compression::v1::TensorHeader* AddHeader(
      const ReceivedTensor& request, nni::compression::v1::TensorRole role,
      compression::DataType dtype, absl::Span<const int64_t> shape, int64_t byte_length,
      nni::compression::v1::QuantizeWeightResponse* fields);

  compression::QuantizeReply reply_ = compression::QuantizeReply::kCodes;
  std::optional<int64_t> step_;  // the trainer's, to be checked
  uint32_t next_index_ = 0;      // of the tensors sent; on the session's strand
};

using QuantizeWeightHandler = LayerHandler<QuantizeWeight>;

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_CALLS_QUANTIZE_WEIGHT_H_
