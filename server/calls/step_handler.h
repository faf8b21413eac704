// Step: sets the step, with the ranges and gradients that the algorithm asked for.
#ifndef NNI_COMPRESSION_SERVER_CALLS_STEP_HANDLER_H_
#define NNI_COMPRESSION_SERVER_CALLS_STEP_HANDLER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "server/base/mutex.h"
#include "server/calls/session_scope.h"
#include "server/tensors/stream_call.h"

namespace nni_compression::server {

// Collects the tensors and applies them, in the order of their headers, when the client
// half-closes: until then nothing changes. The collected data is bounded by the largest answer; a
// call that exceeds it fails.
class StepHandler final : public StreamHandler {
 public:
  StepHandler(Components* components, const std::shared_ptr<CallContext>& context, StreamCall* call)
      : call_(call), session_(components, context, call) {}

 private:
  // A header, with its tensor or error.
  struct Input {
    nni::compression::v1::TensorHeader header;
    Reservation bookkeeping;
    absl::Status error;
    std::optional<ReceivedTensor> tensor;
  };

  absl::StatusOr<bool> OnOpen(wire::MessageReader& reader) override;
  Loader MakeLoader() override { return session_.MakeLoader(); }
  absl::Status OnReady() override;
  absl::StatusOr<Admission> OnHeader(const nni::compression::v1::TensorHeader& header,
                                     Reservation& bookkeeping) override;
  absl::Status OnTensor(ReceivedTensor tensor) override;
  bool HoldsTensors() const override { return received_ > 0; }
  absl::Status OnHalfClose() override;
  void OnEnd() override { session_.End(); }

  // Size of the answer to an input.
  absl::Status CountAnswer(uint64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(inputs_mutex_);
  void SetError(size_t input, const absl::Status& error);

  // On the session's strand, from here on.
  absl::StatusOr<Reply> Apply(compression::Session& session);
  void ApplyInput(compression::Session& session, bool applied, const Input& input,
                  nni::compression::v1::LayerParameters* out);
  absl::Status ApplyRange(compression::Session& session, bool applied, const Input& input,
                          nni::compression::v1::LayerParameters* out);
  absl::Status ApplyGradient(compression::Session& session, const Input& input);
  absl::Status ApplyActivation(compression::Session& session, bool applied, const Input& input,
                               nni::compression::v1::LayerParameters* out);

  StreamCall* const call_;
  SessionScope session_;
  int64_t step_ = 0;
  int received_ = 0;
  mutable Mutex inputs_mutex_;  // the session's strand adds errors, too
  std::vector<Input> inputs_ ABSL_GUARDED_BY(inputs_mutex_);
  absl::flat_hash_map<uint32_t, size_t> places_ ABSL_GUARDED_BY(inputs_mutex_);
  uint64_t answer_bytes_ ABSL_GUARDED_BY(inputs_mutex_) = 0;  // upper bound
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_CALLS_STEP_HANDLER_H_
