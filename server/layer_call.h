// What CalcMask and QuantizeWeight share.
#ifndef NNI_COMPRESSION_SERVER_LAYER_CALL_H_
#define NNI_COMPRESSION_SERVER_LAYER_CALL_H_

#include "absl/status/status.h"
#include "compression/buffer.h"
#include "nni/compression/v1/compression.pb.h"
#include "server/reply_queue.h"
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

  // Finds bytes that need not be sent: of a digest that the tenant sent before, or in the shared
  // memory that the header names; and sees that the result has a place. A header that names memory
  // that is not the tenant's is answered with an error, and not accepted.
  void AdmitPresent(const nni::compression::v1::TensorHeader& header, Admission* admission);

  // Replies once what the task changed is stored. In the session.
  void Answered(Reply reply);

  // Adds `bytes`, the tensor of `header`, to a reply: written to the place that the request's
  // header names, if it fits there and the region is still there, or as a payload to be sent.
  void AddResult(const ReceivedTensor& request, compression::Buffer bytes,
                 nni::compression::v1::TensorHeader* header, Reply* reply);

 private:
  void AdmitKnown(const nni::compression::v1::TensorHeader& header, Admission* admission);
  void AdmitShared(const nni::compression::v1::TensorHeader& header, Admission* admission);
  absl::Status OnTensor(ReceivedTensor tensor) final;
  absl::Status OnHalfClose() final;
  absl::Status ApplyChecked(compression::Session& session, ReceivedTensor& tensor);
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_LAYER_CALL_H_
