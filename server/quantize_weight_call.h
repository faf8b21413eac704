// QuantizeWeight: weights or ranges in, quantized weights or parameters out.
#ifndef NNI_COMPRESSION_SERVER_QUANTIZE_WEIGHT_CALL_H_
#define NNI_COMPRESSION_SERVER_QUANTIZE_WEIGHT_CALL_H_

#include <cstdint>
#include <memory>
#include <optional>

#include "server/layer_call.h"

namespace nni_compression::server {

// Threads as StreamCall.
class QuantizeWeightCall final : public LayerCall {
 public:
  using LayerCall::LayerCall;

 private:
  absl::Status OnOpen(wire::MessageReader& reader) override;
  absl::StatusOr<Admission> OnHeader(const nni::compression::v1::TensorHeader& header) override;
  void AnswerError(const nni::compression::v1::TensorHeader& header,
                   const absl::Status& error) override;

  // In the session, from here on.
  absl::Status CheckClock(const compression::Session& session) const override;
  absl::Status Apply(compression::Session& session, int layer, ReceivedTensor& tensor) override;
  absl::Status Answer(const ReceivedTensor& tensor, const compression::Layer& layer,
                      compression::QuantizedWeight result, Reservation memory);

  // Adds a tensor to a reply that answers `request`.
  void AddTensor(const ReceivedTensor& request, nni::compression::v1::TensorRole role,
                 compression::DataType dtype, absl::Span<const int64_t> shape,
                 compression::Buffer bytes, nni::compression::v1::QuantizeWeightResponse* fields,
                 Reply* reply);

  compression::QuantizeReply reply_ = compression::QuantizeReply::kCodes;
  std::optional<int64_t> step_;  // that the trainer believes in
  uint32_t next_index_ = 0;      // of the tensors sent; used in the session
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_QUANTIZE_WEIGHT_CALL_H_
