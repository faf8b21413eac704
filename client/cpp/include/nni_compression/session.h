// A session: one compressor on the server, bound to one model.
#ifndef NNI_COMPRESSION_SESSION_H_
#define NNI_COMPRESSION_SESSION_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "nni/compression/v1/compression.pb.h"
#include "nni_compression/files.h"
#include "nni_compression/thresholds.h"
#include "nni_compression/types.h"

namespace nni_compression {

namespace v1 = ::nni::compression::v1;

namespace internal {
class Connection;
struct Route;
}  // namespace internal

// The progress of a call with tensors.
struct Progress {
  int64_t sent_bytes = 0;   // payload passed to the transport; decreases when the call is retried
  int64_t total_bytes = 0;  // payload that the call sends
  int64_t answered = 0;     // tensors answered, or files complete
};

// Options of one call; what is not set is as in ClientOptions.
struct CallOptions {
  std::optional<absl::Duration> timeout;
  // Called in the caller's thread, at most once per message.
  std::function<void(const Progress&)> progress;
  // The epoch or step that the trainer expects; FAILED_PRECONDITION when the session is at another.
  // CalcMask checks the epoch, QuantizeWeight the step.
  std::optional<int64_t> epoch;
  std::optional<int64_t> step;
};

struct StepResult {
  int64_t step = 0;  // the highest one applied
  std::vector<std::string> stale_layers;
  // One for each tensor sent, in their order; the data is empty.
  std::vector<absl::StatusOr<QuantizedTensor>> parameters;
};

// A handle; copies are the same session. Destroying it does not close the session: several ranks
// may hold it, and its lease ends it when there are no calls. Thread-safe: any method may be called
// from any thread at any time; the server orders the calls of a session.
//
// All calls are retryable: UNAVAILABLE, and RESOURCE_EXHAUSTED with a delay from the server, are
// retried until the call's timeout or RetryOptions::time_limit. Errors have the codes of the wire
// contract. A call with tensors returns only when the transport no longer refers to the caller's
// memory; after an error that may take until a dead connection is detected (20 s).
class Session {
 public:
  Session(std::shared_ptr<const internal::Connection> connection, std::string id, std::string route,
          v1::Plan plan, std::vector<std::string> stale_layers);

  const std::string& id() const { return id_; }
  // The route key that every call carries; give it to the ranks that join.
  const std::string& route() const;
  const v1::Plan& plan() const { return *plan_; }
  // Layers that were stale when the session was bound or joined.
  const std::vector<std::string>& initial_stale_layers() const { return initial_stale_layers_; }

  // Masks of the weights, in their order, all in one stream. Each tensor has its own result: a
  // layer's data error does not affect the others, and when the call itself fails, the tensors
  // without an answer get its error. Roles kWeight, or kMask for a mask that the trainer has.
  // Stale layers of a rule that is `joint` in the plan have to be in one call, all of them.
  std::vector<absl::StatusOr<Mask>> CalcMask(absl::Span<const Tensor> tensors,
                                             const CallOptions& options = {}) const;

  // As CalcMask of weights, from counts of their magnitudes: for each layer the threshold from
  // which the trainer makes the mask, or the mask itself. Only layers of rules with `takes_counts`
  // in the plan. It takes a call for every 16 bits of a weight, each with its own timeout. The
  // server has only thresholds afterwards: an export, or a weight of such a layer, needs its mask
  // first (role kMask). FAILED_PRECONDITION when another rank has decided from other counts,
  // ABORTED when the session keeps changing.
  std::vector<absl::StatusOr<ThresholdOrMask>> CalcThresholds(
      absl::Span<const CountedLayer> layers, const CallOptions& options = {}) const;

  // Quantized weights, likewise. Roles kWeight, or kRange (answered with parameters only).
  std::vector<absl::StatusOr<QuantizedTensor>> QuantizeWeight(
      absl::Span<const Tensor> tensors, QuantizeReply reply = QuantizeReply::kCodes,
      const CallOptions& options = {}) const;

  // Sets the epoch, which is absolute, and returns the layers that are stale then.
  absl::StatusOr<std::vector<std::string>> UpdateEpoch(int64_t epoch,
                                                       const CallOptions& options = {}) const;

  // Sets the step, which is absolute, and sends the tensors that the plan asks for.
  absl::StatusOr<StepResult> Step(int64_t step, absl::Span<const Tensor> inputs = {},
                                  const CallOptions& options = {}) const;

  // Streams files of `format` into the sink, which is not committed; docs/exports.md has the
  // formats. `tensors` are the weights of all compressed layers, and other tensors for the file,
  // which may be scalars; none for "masks". `format_options` is a JSON object or empty.
  absl::Status Export(absl::string_view format, absl::Span<const Tensor> tensors, FileSink& sink,
                      absl::string_view format_options = "", const CallOptions& options = {}) const;

  // Keeps numbers with the session, such as the accuracy of a trial: at most 64 names of 1 to 64
  // bytes, finite. They replace earlier ones of the same names, and are shown as long as the server
  // keeps the session's last report. Only while the session lives.
  absl::Status Report(const std::map<std::string, double>& results,
                      const CallOptions& options = {}) const;

  // Renews the lease and returns the time until it ends.
  absl::StatusOr<absl::Duration> KeepAlive(const CallOptions& options = {}) const;

  // Ends the session. Closing a closed session succeeds.
  absl::Status Close(const CallOptions& options = {}) const;

 private:
  std::shared_ptr<const internal::Connection> connection_;
  std::string id_;
  std::shared_ptr<const internal::Route> route_;
  std::shared_ptr<const v1::Plan> plan_;
  std::vector<std::string> initial_stale_layers_;
};

}  // namespace nni_compression

#endif  // NNI_COMPRESSION_SESSION_H_
