#include "server/unary_call.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/wire/frames.h"
#include "server/status.h"

namespace nni_compression::server {
namespace {

// What a call does with each of so many layers is not worth another thread, unless it is foreign
// code that does it.
constexpr size_t kFewLayers = 1000;

}  // namespace

grpc::ServerUnaryReactor* UnaryCall::Start(
    Core* core, grpc::CallbackServerContext* grpc, absl::string_view method,
    const google::protobuf::MessageLite* response,
    const std::function<void(const std::shared_ptr<UnaryCall>&)>& handle) {
  grpc::ServerUnaryReactor* const reactor = grpc->DefaultReactor();
  auto context = core->gate->Admit(grpc, method);
  if (!context.ok()) {
    reactor->Finish(FinishWith(context.status(), grpc));
    return reactor;
  }
  handle(std::shared_ptr<UnaryCall>(
      new UnaryCall(core, grpc, *std::move(context), reactor, response)));
  return reactor;
}

void UnaryCall::Finish(const absl::Status& status) {
  absl::Status outcome = status;
  const int64_t size = static_cast<int64_t>(response_->ByteSizeLong());
  if (status.ok() && size > wire::kMaxMessageBytes) {
    outcome = absl::ResourceExhaustedError(absl::StrCat("the reply has ", size, " bytes; at most ",
                                                        wire::kMaxMessageBytes, " are allowed"));
  }
  reactor_->Finish(context_->Finish(outcome));
}

void UnaryCall::RunInSession(absl::string_view session_id, Task task) {
  context_->set_session(session_id);
  absl::StatusOr<SessionUse> use = core_->sessions->Use(tenant(), session_id);
  if (!use.ok()) return Finish(use.status());
  RunInSession(*std::move(use), std::move(task));
}

void UnaryCall::Load(const std::shared_ptr<SessionRecord>& record, DurableSessions::Done done) {
  if (core_->durable == nullptr) return done(absl::OkStatus());
  core_->durable->Load(record, std::move(done));
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
  const bool quick =
      use->layers().size() <= kFewLayers && core_->executor_of(use->algorithm()) == core_->executor;
  auto run = [self = shared_from_this(), use = std::make_shared<SessionUse>(std::move(use)),
              task = std::move(task)] {
    compression::Session* const session = (*use)->session();
    absl::Status status;
    if (self->cancelled()) {
      status = absl::CancelledError("cancelled");
    } else if (session == nullptr) {
      status = NoSession(**use);
    } else {
      status = CatchExceptions([&] { return task(*use, *session); });
    }
    if (session == nullptr || self->core()->durable == nullptr) {
      return self->FinishInSession(*use, status);
    }
    self->core()->durable->Save(use->record(), *session, [self, use, status](const auto& saved) {
      self->FinishInSession(*use, status.ok() ? saved : status);
    });
  };
  if (quick) {
    strand->RunOrPost(std::move(run));
  } else {
    strand->Post(std::move(run));
  }
}

void UnaryCall::FinishInSession(SessionUse& use, const absl::Status& status) {
  use.Drop();  // before the caller hears
  Finish(status);
}

}  // namespace nni_compression::server
