// CalcMask: weights in, masks out.
#ifndef NNI_COMPRESSION_SERVER_CALC_MASK_CALL_H_
#define NNI_COMPRESSION_SERVER_CALC_MASK_CALL_H_

#include <cstdint>
#include <memory>
#include <optional>

#include "server/layer_call.h"

namespace nni_compression::server {

// Threads as StreamCall.
class CalcMaskCall final : public LayerCall {
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
  void Answer(const ReceivedTensor& tensor, const compression::MaskAnswer& answer,
              Reservation memory);

  std::optional<int64_t> epoch_;  // that the trainer believes in
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_CALC_MASK_CALL_H_
