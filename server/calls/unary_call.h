// The common part of unary calls.
#ifndef NNI_COMPRESSION_SERVER_CALLS_UNARY_CALL_H_
#define NNI_COMPRESSION_SERVER_CALLS_UNARY_CALL_H_

#include <google/protobuf/message.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "compression/session/session.h"
#include "server/calls/call_context.h"
#include "server/calls/components.h"

namespace nni_compression::server {

// A running unary call: lets the handler answer later, from any thread, exactly once. Request and
// response live until it is finished. Their memory is reserved from the server's budget and the
// tenant's quota before it is allocated: the request's bytes before they wait for a thread, the
// parsed request before parsing, the reply before it is queued for sending. A call without room is
// refused, except for one that fits into the memory that every call is charged anyway, so that
// sessions can be kept alive and closed on a full server.
class UnaryCall : public std::enable_shared_from_this<UnaryCall> {
 public:
  // Admits the call, parses its request and passes it to `handle`, or refuses it. A large request
  // is parsed on the executor. `request` and `reply` are what gRPC received and will send.
  template <class Request, class Response, class Handle>
  static grpc::ServerUnaryReactor* Start(Components* components, grpc::CallbackServerContext* grpc,
                                         absl::string_view method, const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* reply, Handle handle) {
    return Start(components, grpc, method, *request, reply,
                 {std::make_unique<Request>(), std::make_unique<Response>(),
                  [handle](const std::shared_ptr<UnaryCall>& call, const Message& parsed,
                           Message* response) {
                    handle(call, static_cast<const Request&>(parsed),
                           static_cast<Response*>(response));
                  }});
  }

  // RESOURCE_EXHAUSTED replaces `status` when the response exceeds 4 MiB or there is no memory for
  // it. Only the first call counts.
  void Finish(const absl::Status& status);

  // Checks that the response, as it is now, can be sent: for a call that must change nothing
  // otherwise. RESOURCE_EXHAUSTED, as Finish.
  absl::Status ReserveReply();

  // Runs `task` on the session's strand, which takes over the call's SessionUse, and finishes the
  // call with its result once its changes are stored. NOT_FOUND when there is no such session. A
  // call that was cancelled before its turn changes nothing.
  using Task = std::function<absl::Status(SessionUse& use, compression::Session& session)>;
  void RunInSession(absl::string_view session_id, Task task);
  void RunInSession(SessionUse use, Task task);

  // Ends the use, so that the lease runs from now on, and then the call.
  void FinishInSession(SessionUse& use, const absl::Status& status);

  // NOT_FOUND when the stored session is older than what the caller has seen.
  absl::Status CheckRevision(const SessionRecord& record) const {
    return context_->CheckRevision(record.id(), record.revision);
  }

  // Calls `done` when the session is in memory, or cannot be loaded.
  void Load(const std::shared_ptr<SessionRecord>& record, DurableSessions::Done done);

  Components* components() const { return components_; }
  const Caller& caller() const { return context_->caller(); }
  const std::string& tenant() const { return context_->tenant(); }
  MemoryQuota memory_quota() const { return context_->memory_quota(); }
  Work work() const;  // for a pass over the whole request
  bool cancelled() const { return grpc_->IsCancelled(); }

 private:
  using Message = google::protobuf::Message;
  class Reactor;

  struct Method {
    std::unique_ptr<Message> request;
    std::unique_ptr<Message> response;
    std::function<void(const std::shared_ptr<UnaryCall>&, const Message&, Message*)> handle;
  };

  UnaryCall(Components* components, grpc::CallbackServerContext* grpc,
            std::unique_ptr<CallContext> context, Reactor* reactor, grpc::ByteBuffer* reply,
            Method method)
      : components_(components),
        grpc_(grpc),
        context_(std::move(context)),
        reactor_(reactor),
        reply_(reply),
        method_(std::move(method)) {}

  static grpc::ServerUnaryReactor* Start(Components* components, grpc::CallbackServerContext* grpc,
                                         absl::string_view method, const grpc::ByteBuffer& request,
                                         grpc::ByteBuffer* reply, Method messages);

  // RESOURCE_EXHAUSTED when there is no memory for `bytes` beyond what every call is charged.
  absl::Status Reserve(int64_t bytes, absl::string_view what, Reservation* out);
  absl::Status Reply();

  // Parses and handles the request, or fails the call.
  void Handle(const grpc::ByteBuffer& request);
  void RunLoaded(SessionUse use, Task task);

  Components* const components_;
  grpc::CallbackServerContext* const grpc_;
  std::unique_ptr<CallContext> context_;  // null once it is finished
  Reactor* const reactor_;
  grpc::ByteBuffer* const reply_;
  Method method_;
  std::atomic<bool> finished_{false};
  int64_t request_bytes_ = 0;
  Reservation request_memory_;
  Reservation reply_memory_;  // until gRPC is done with it
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_CALLS_UNARY_CALL_H_
