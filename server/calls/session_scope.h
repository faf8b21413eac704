// The session of a streaming call.
#ifndef NNI_COMPRESSION_SERVER_CALLS_SESSION_SCOPE_H_
#define NNI_COMPRESSION_SERVER_CALLS_SESSION_SCOPE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "compression/session/session.h"
#include "nni/compression/v1/compression.pb.h"
#include "server/calls/call_context.h"
#include "server/calls/components.h"
#include "server/sessions/session_store.h"
#include "server/tensors/stream_call.h"

namespace nni_compression::server {

// A handler's access to its session, whose lease is held from Join to End. Threads as
// StreamHandler; tasks run on the session's strand.
class SessionScope {
 public:
  // `components` and `call` outlive the scope.
  SessionScope(Components* components, std::shared_ptr<CallContext> context, StreamCall* call);

  // Returns whether the session is in memory; if not, the loader loads it. NOT_FOUND.
  absl::StatusOr<bool> Join(absl::string_view session_id);
  StreamHandler::Loader MakeLoader() const;

  // Called once it is in memory. NOT_FOUND when it has ended, FAILED_PRECONDITION when its
  // algorithm is not of `kind`, if given.
  absl::Status CheckKind(std::optional<compression::AlgorithmKind> kind) const;

  // Runs `task`, a StatusOr<Reply>(compression::Session&). Its reply is pushed once its changes are
  // stored; NOT_FOUND ends the call when the session has ended.
  template <typename Task>
  void Run(Task task, Work work = Work::kShort) {
    call_->BeginTask(work);
    record().strand().Post(
        [this, call = call_->shared_from_this(), task = std::optional<Task>(std::move(task)),
         work]() mutable {
          if (call->failed()) {
            task.reset();
            return call->EndTask(work, Reply());
          }
          absl::StatusOr<Reply> reply = Compute(*task);
          task.reset();  // frees the memory that it holds before the call can end
          Store(std::move(reply), work);
        },
        work);
  }

  // The result of checking the header of a layer's tensor.
  struct Checked {
    std::optional<int> layer;
    // Set when `layer` is not; OK: the session knows why.
    absl::Status error;
  };
  // Checks role, layer, dtype, shape and length.
  Checked Check(const nni::compression::v1::TensorHeader& header,
                absl::Span<const nni::compression::v1::TensorRole> roles) const;

  // Answers a header that failed with the Reply that `refuse` makes of the Status: now, or once the
  // session has returned the error. The other tensors continue.
  template <typename Answer>
  void Refuse(const nni::compression::v1::TensorHeader& header, const absl::Status& error,
              Answer refuse) {
    const absl::Status why = error.ok() ? CheckSuggestions(header.layer()) : error;
    if (!why.ok()) return call_->Push(refuse(why));
    Run([this, name = header.layer(),
         refuse = std::move(refuse)](compression::Session& session) -> absl::StatusOr<Reply> {
      return refuse(WhyNot(session, name));
    });
  }

  // Answers a header with a digest: whether the payload has to be sent. Does nothing without a
  // digest.
  void AnswerDigest(const nni::compression::v1::TensorHeader& header, bool have,
                    Reservation& bookkeeping);

  // Memory for an answer that belongs to no tensor. RESOURCE_EXHAUSTED.
  absl::StatusOr<Reservation> ReserveBookkeeping(int64_t bytes);

  // Updates the catalogue entry to what the call did. In a task.
  void UpdateSummary(const compression::Session& session);

  // Any thread, while the call has tasks.
  void CountReceived(int64_t bytes);
  void CountSent(int64_t bytes);

  // Called at the handler's end: releases the session once its catalogue entry is up to date.
  void End();

  bool joined() const { return record_ != nullptr; }
  SessionRecord& record() const { return *record_; }
  const std::string& tenant() const { return context_->tenant(); }

 private:
  // A suggestion compares a name with a thousand others, which takes milliseconds.
  static constexpr int kMaxSuggestions = 10;

  absl::StatusOr<Reply> Compute(
      absl::FunctionRef<absl::StatusOr<Reply>(compression::Session&)> task);
  void Store(absl::StatusOr<Reply> reply, Work work);
  absl::Status WhyNot(compression::Session& session, const std::string& name) const;
  // NOT_FOUND for an unknown layer, without a suggestion after the first few of them.
  absl::Status CheckSuggestions(const std::string& name);
  absl::Status CheckAgainstBound(const nni::compression::v1::TensorHeader& header, int layer) const;

  Components* const components_;
  const std::shared_ptr<CallContext> context_;
  StreamCall* const call_;
  std::shared_ptr<SessionRecord> record_;
  SessionUse use_;
  int suggestions_ = 0;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_CALLS_SESSION_SCOPE_H_
