#include "server/calls/unary_call.h"

#include <grpcpp/support/proto_buffer_reader.h>
#include <grpcpp/support/proto_buffer_writer.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/wire/frames.h"
#include "server/base/errors.h"
#include "server/convert/grpc_status.h"
#include "server/limits/memory_costs.h"
#include "server/limits/parsed_size.h"

namespace nni_compression::server {
namespace {

// Work on up to this many layers is not worth another thread, unless it is external code.
constexpr size_t kFewLayers = 1000;

// A request up to the first limit fits, parsed, into the memory that every call is charged,
// whatever its content (two bytes may become an object of about 200). One up to the second is
// parsed in microseconds; one above the third is parsed as long work.
constexpr int64_t kTinyRequest = 200;
constexpr int64_t kSmallRequest = 16 << 10;
constexpr int64_t kLargeRequest = 256 << 10;

}  // namespace

// Keeps the call, and with it the reply's memory, alive until gRPC is done.
class UnaryCall::Reactor final : public grpc::ServerUnaryReactor {
 public:
  void Keep(std::shared_ptr<UnaryCall> call) { call_ = std::move(call); }
  void OnDone() override { delete this; }

 private:
  std::shared_ptr<UnaryCall> call_;
};

grpc::ServerUnaryReactor* UnaryCall::Start(Components* components,
                                           grpc::CallbackServerContext* grpc,
                                           absl::string_view method,
                                           const grpc::ByteBuffer& request, grpc::ByteBuffer* reply,
                                           Method messages) {
  auto* const reactor = new Reactor;
  auto context = components->gate->Admit(grpc, method);
  if (!context.ok()) {
    reactor->Finish(FinishWith(context.status(), grpc));
    return reactor;
  }
  const std::shared_ptr<UnaryCall> call(
      new UnaryCall(components, grpc, *std::move(context), reactor, reply, std::move(messages)));
  reactor->Keep(call);
  const auto size = static_cast<int64_t>(request.Length());
  call->request_bytes_ = size;
  if (size <= kSmallRequest) {
    call->Handle(request);
    return reactor;
  }
  const absl::Status status = call->Reserve(size, "the request", &call->request_memory_);
  if (!status.ok()) {
    call->Finish(status);
    return reactor;
  }
  components->executor->Schedule([call, request] { call->Handle(request); }, call->work());
  return reactor;
}

Work UnaryCall::work() const {
  return request_bytes_ <= kLargeRequest ? Work::kShort : Work::kLong;
}

void UnaryCall::Handle(const grpc::ByteBuffer& request) {
  const absl::Status status = CatchExceptions([&]() -> absl::Status {
    if (cancelled()) return absl::CancelledError("cancelled");
    if (request_bytes_ > kTinyRequest) {
      // gRPC keeps the bytes as long as the call lives.
      const int64_t size = request_bytes_ + ParsedSize(*method_.request, request);
      request_memory_.ShrinkTo(0);
      if (absl::Status s = Reserve(size, "the request", &request_memory_); !s.ok()) return s;
    }
    grpc::ByteBuffer bytes = request;
    grpc::ProtoBufferReader reader(&bytes);
    if (!method_.request->ParseFromZeroCopyStream(&reader)) {
      return absl::InvalidArgumentError(absl::StrCat("the request cannot be parsed as a ",
                                                     method_.request->GetDescriptor()->name()));
    }
    return absl::OkStatus();
  });
  if (!status.ok()) return Finish(status);
  const absl::Status handled = CatchExceptions([&] {
    method_.handle(shared_from_this(), *method_.request, method_.response.get());
    return absl::OkStatus();
  });
  if (!handled.ok()) Finish(handled);
}

absl::Status UnaryCall::Reserve(int64_t bytes, absl::string_view what, Reservation* out) {
  if (bytes <= kCallBytes) return absl::OkStatus();
  absl::StatusOr<Reservation> memory =
      components_->budget->ReserveNow(bytes, memory_quota(), MemoryUse::kPayload, what);
  if (!memory.ok()) return memory.status();
  *out = *std::move(memory);
  return absl::OkStatus();
}

absl::Status UnaryCall::ReserveReply() {
  const auto size = static_cast<int64_t>(method_.response->ByteSizeLong());
  if (size > wire::kMaxMessageBytes) {
    return absl::ResourceExhaustedError(absl::StrCat("the reply has ", size, " bytes; at most ",
                                                     wire::kMaxMessageBytes, " are allowed"));
  }
  if (reply_memory_.bytes() >= size) return absl::OkStatus();
  return Reserve(size, "the reply", &reply_memory_);
}

absl::Status UnaryCall::Reply() {
  if (absl::Status status = ReserveReply(); !status.ok()) return status;
  const auto size = static_cast<int64_t>(method_.response->ByteSizeLong());
  grpc::ProtoBufferWriter writer(reply_, std::max(1, static_cast<int>(size)),
                                 static_cast<int>(size));
  method_.response->SerializeToZeroCopyStream(&writer);
  return absl::OkStatus();
}

void UnaryCall::Finish(const absl::Status& status) {
  if (finished_.exchange(true)) return;  // an exception was thrown after Finish
  const absl::Status outcome = status.ok() ? CatchExceptions([&] { return Reply(); }) : status;
  // Not used any more; only the reply is kept until it is sent.
  method_.request.reset();
  method_.response.reset();
  request_memory_.ShrinkTo(request_bytes_);
  const grpc::Status last = context_->Finish(outcome);
  context_.reset();  // before the caller gets the reply: its quota may be one call at a time
  reactor_->Finish(last);
}

void UnaryCall::RunInSession(absl::string_view session_id, Task task) {
  context_->set_session(session_id);
  absl::StatusOr<SessionUse> use = components_->sessions->Use(tenant(), session_id);
  if (!use.ok()) return Finish(use.status());
  if (absl::Status status = CheckRevision(**use); !status.ok()) {
    return FinishInSession(*use, status);
  }
  RunInSession(*std::move(use), std::move(task));
}

void UnaryCall::Load(const std::shared_ptr<SessionRecord>& record, DurableSessions::Done done) {
  if (components_->durable == nullptr) return done(absl::OkStatus());
  components_->durable->Load(record, std::move(done));
}

void UnaryCall::RunInSession(SessionUse use, Task task) {
  const auto held = std::make_shared<SessionUse>(std::move(use));
  Load(held->record(),
       [self = shared_from_this(), held, task = std::move(task)](const absl::Status& status) {
         if (status.ok()) return self->RunLoaded(std::move(*held), task);
         held->Drop();
         self->Finish(status);
       });
}

void UnaryCall::RunLoaded(SessionUse use, Task task) {
  const auto strand = use->strand().shared_from_this();
  const bool quick = use->layers().size() <= kFewLayers &&
                     components_->executor_of(use->algorithm()) == components_->executor;
  auto run = [self = shared_from_this(), use = std::make_shared<SessionUse>(std::move(use)),
              task = std::move(task)] {
    compression::Session* const session = (*use)->session();
    absl::Status status;
    if (self->cancelled()) {
      status = absl::CancelledError("cancelled");
    } else if (session == nullptr || (*use)->ending()) {
      status = NoSession(**use);
    } else {
      status = CatchExceptions([&] { return task(*use, *session); });
    }
    if (session == nullptr || self->components()->durable == nullptr) {
      return self->FinishInSession(*use, status);
    }
    self->components()->durable->Save(
        use->record(), *session, [self, use, status](const absl::StatusOr<uint64_t>& revision) {
          if (revision.ok()) self->context_->ReachedRevision(*revision);
          self->FinishInSession(*use, status.ok() ? revision.status() : status);
        });
  };
  if (quick) {
    strand->RunOrPost(std::move(run));
  } else {
    strand->Post(std::move(run));
  }
}

void UnaryCall::FinishInSession(SessionUse& use, const absl::Status& status) {
  use.Drop();  // before the caller gets the reply
  Finish(status);
}

}  // namespace nni_compression::server
