// What the unary calls share.
#ifndef NNI_COMPRESSION_SERVER_UNARY_CALL_H_
#define NNI_COMPRESSION_SERVER_UNARY_CALL_H_

#include <google/protobuf/message_lite.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "compression/session.h"
#include "server/call_context.h"
#include "server/core.h"

namespace nni_compression::server {

// A unary call that is under way: lets the handler answer later, from any thread, exactly once.
class UnaryCall : public std::enable_shared_from_this<UnaryCall> {
 public:
  // Lets the call in and hands it to `handle`, or refuses it. `response` is what gRPC will send.
  static grpc::ServerUnaryReactor* Start(
      Core* core, grpc::CallbackServerContext* grpc, absl::string_view method,
      const google::protobuf::MessageLite* response,
      const std::function<void(const std::shared_ptr<UnaryCall>&)>& handle);

  // RESOURCE_EXHAUSTED takes the place of `status` when the response is above 4 MiB.
  void Finish(const absl::Status& status);

  // Finishes the call with what `task` returns, once what it changed is stored. Runs it on the
  // session's strand, which is given the call's hold on the session; NOT_FOUND when there is no
  // such session. A call that was cancelled before its turn changes nothing.
  using Task = std::function<absl::Status(SessionUse& use, compression::Session& session)>;
  void RunInSession(absl::string_view session_id, Task task);
  void RunInSession(SessionUse use, Task task);

  // Ends the use, so that the lease runs from now, and then the call.
  void FinishInSession(SessionUse& use, const absl::Status& status);

  // Calls `done` when the session is in memory, or cannot be brought there.
  void Load(const std::shared_ptr<SessionRecord>& record, DurableSessions::Done done);

  Core* core() const { return core_; }
  const Caller& caller() const { return context_->caller(); }
  const std::string& tenant() const { return context_->tenant(); }
  MemoryShare memory_share() const { return context_->memory_share(); }
  bool cancelled() const { return grpc_->IsCancelled(); }

 private:
  void RunLoaded(SessionUse use, Task task);

  UnaryCall(Core* core, grpc::CallbackServerContext* grpc, std::unique_ptr<CallContext> context,
            grpc::ServerUnaryReactor* reactor, const google::protobuf::MessageLite* response)
      : core_(core),
        grpc_(grpc),
        context_(std::move(context)),
        reactor_(reactor),
        response_(response) {}

  Core* const core_;
  grpc::CallbackServerContext* const grpc_;
  const std::unique_ptr<CallContext> context_;
  grpc::ServerUnaryReactor* const reactor_;
  const google::protobuf::MessageLite* const response_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_UNARY_CALL_H_
