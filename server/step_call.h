// Step: sets the step, with the ranges and gradients that the algorithm asked for.
#ifndef NNI_COMPRESSION_SERVER_STEP_CALL_H_
#define NNI_COMPRESSION_SERVER_STEP_CALL_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "server/mutex.h"
#include "server/session_call.h"

namespace nni_compression::server {

// Collects the tensors and applies them, in the order of their headers, when the client
// half-closes: until then nothing changes. Threads as StreamCall.
class StepCall final : public SessionCall {
 public:
  using SessionCall::SessionCall;

 private:
  // A header and what came of it.
  struct Input {
    nni::compression::v1::TensorHeader header;
    absl::Status error;
    std::optional<ReceivedTensor> tensor;
  };

  absl::Status OnOpen(wire::MessageReader& reader) override;
  absl::StatusOr<Admission> OnHeader(const nni::compression::v1::TensorHeader& header) override;
  absl::Status OnTensor(ReceivedTensor tensor) override;
  bool HoldsTensors() const override { return received_ > 0; }
  absl::Status OnHalfClose() override;
  void AnswerError(const nni::compression::v1::TensorHeader& header,
                   const absl::Status& error) override;

  // In the session, from here on.
  absl::Status CheckSize(const compression::Session& session) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(inputs_mutex_);
  absl::Status Apply(compression::Session& session);
  void ApplyInput(compression::Session& session, bool applied, const Input& input,
                  nni::compression::v1::LayerParameters* out);
  absl::Status ApplyRange(compression::Session& session, bool applied, const Input& input,
                          nni::compression::v1::LayerParameters* out);
  absl::Status ApplyGradient(compression::Session& session, const Input& input);
  absl::Status ApplyActivation(compression::Session& session, bool applied, const Input& input,
                               nni::compression::v1::LayerParameters* out);

  int64_t step_ = 0;
  int received_ = 0;
  mutable Mutex inputs_mutex_;  // errors come from the session's strand, too
  std::vector<Input> inputs_ ABSL_GUARDED_BY(inputs_mutex_);
  absl::flat_hash_map<uint32_t, size_t> places_ ABSL_GUARDED_BY(inputs_mutex_);
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_STEP_CALL_H_
