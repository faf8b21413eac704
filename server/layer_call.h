// What CalcMask and QuantizeWeight share.
#ifndef NNI_COMPRESSION_SERVER_LAYER_CALL_H_
#define NNI_COMPRESSION_SERVER_LAYER_CALL_H_

#include "absl/status/status.h"
#include "server/session_call.h"

namespace nni_compression::server {

// A call that answers every tensor by itself, as soon as it is there. Threads as StreamCall.
class LayerCall : public SessionCall {
 public:
  using SessionCall::SessionCall;

 protected:
  // FAILED_PRECONDITION when the trainer believes in another epoch or step than the session's. In
  // the session.
  virtual absl::Status CheckClock(const compression::Session& session) const = 0;

  // Computes the answer to a tensor whose checksum is right, and replies; an error ends the call.
  // In the session.
  virtual absl::Status Apply(compression::Session& session, int layer, ReceivedTensor& tensor) = 0;

 private:
  absl::Status OnTensor(ReceivedTensor tensor) final;
  absl::Status OnHalfClose() final;
  absl::Status ApplyChecked(compression::Session& session, ReceivedTensor& tensor);
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_LAYER_CALL_H_
