// What the streaming calls on a session share.
#ifndef NNI_COMPRESSION_SERVER_SESSION_CALL_H_
#define NNI_COMPRESSION_SERVER_SESSION_CALL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "compression/session.h"
#include "nni/compression/v1/compression.pb.h"
#include "server/call_context.h"
#include "server/core.h"
#include "server/session_store.h"
#include "server/stream_call.h"

namespace nni_compression::server {

// A streaming call on one session, whose lease it holds. Threads as StreamCall.
class SessionCall : public StreamCall {
 public:
  // `core` outlives the call.
  SessionCall(Core* core, std::shared_ptr<CallContext> context);

 protected:
  using Task = std::function<absl::Status(compression::Session& session)>;

  // Joins the session. NOT_FOUND, or FAILED_PRECONDITION when its algorithm is not of `kind`.
  absl::Status Join(absl::string_view session_id, std::optional<compression::AlgorithmKind> kind);

  // FAILED_PRECONDITION when the session's algorithm is not of this kind.
  absl::Status CheckKind(compression::AlgorithmKind kind) const;

  // Runs `task` on the session's strand; NOT_FOUND ends the call when the session has ended.
  void RunInSession(Task task, Work work = Work::kShort);

  // In a task: `action`, an answer, runs once what the task changed is stored.
  void WhenStored(std::function<void()> action) { when_stored_.push_back(std::move(action)); }

  // What a header of a compressed layer must look like: the layer, and the memory that its result
  // takes.
  struct Expected {
    int layer = 0;
    Admission admission;
  };

  // Checks role, layer, dtype, shape and length. A header that fails is answered with an error, and
  // its payload will be thrown away: the other tensors go on.
  Expected CheckHeader(const nni::compression::v1::TensorHeader& header,
                       absl::Span<const nni::compression::v1::TensorRole> roles);

  // Replies that the layer of `header` failed. Any thread.
  virtual void AnswerError(const nni::compression::v1::TensorHeader& header,
                           const absl::Status& error) = 0;

  // Tells the sender of a digest whether the payload is wanted; nothing without a digest.
  void AnswerDigest(const nni::compression::v1::TensorHeader& header, bool have = false);

  // The catalogue's entry follows what the call did. Inside a task.
  void UpdateSummary(const compression::Session& session);

  void CountReceived(int64_t bytes) {
    record().received_bytes += bytes;
    context_->CountReceived(bytes);
  }
  void CountSent(int64_t bytes) {
    record().sent_bytes += bytes;
    context_->CountSent(bytes);
  }

  bool Prepare(const grpc::ByteBuffer& message, const Ready& ready) override;
  void OnEnd() override;

  Core* core() const { return core_; }
  const std::string& tenant() const { return context_->tenant(); }
  SessionRecord& record() const { return *use_; }
  bool joined() const { return static_cast<bool>(use_); }

 private:
  void Store(compression::Session& session);
  absl::Status CheckAgainstBound(const nni::compression::v1::TensorHeader& header, int layer);

  Core* const core_;
  const std::shared_ptr<CallContext> context_;
  SessionUse use_;
  std::vector<std::function<void()>> when_stored_;  // on the strand
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_SESSION_CALL_H_
