#include "server/session_call.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/convert.h"
#include "server/report.h"

namespace nni_compression::server {

namespace v1 = ::nni::compression::v1;

SessionCall::SessionCall(Core* core, std::shared_ptr<CallContext> context)
    : StreamCall(core->environment(*context)), core_(core), context_(std::move(context)) {}

absl::Status SessionCall::Join(absl::string_view session_id,
                               std::optional<compression::AlgorithmKind> kind) {
  context_->set_session(session_id);
  absl::StatusOr<SessionUse> use = core_->sessions->Use(context_->tenant(), session_id);
  if (!use.ok()) return use.status();
  use_ = *std::move(use);
  return kind ? CheckKind(*kind) : absl::OkStatus();
}

absl::Status SessionCall::CheckKind(compression::AlgorithmKind kind) const {
  if (kind == record().kind()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the session's algorithm is ", record().algorithm(), ", which is no ",
                   kind == compression::AlgorithmKind::kPruner ? "pruner" : "quantizer"));
}

void SessionCall::RunInSession(Task task, Work work) {
  Run(
      record().strand(),
      [this, task = std::move(task)] {
        compression::Session* const session = record().session();
        if (session == nullptr) return NoSession(record());
        const absl::Time start = absl::Now();
        const absl::Status status = task(*session);
        const absl::Duration time = absl::Now() - start;
        record().compute_nanoseconds += absl::ToInt64Nanoseconds(time);
        core_->metrics->Computed(record().algorithm(), time);
        Store(*session);
        return status;
      },
      work);
}

void SessionCall::Store(compression::Session& session) {
  const auto answer = [actions = std::exchange(when_stored_, {})] {
    for (const std::function<void()>& action : actions) action();
  };
  if (core_->durable == nullptr) return answer();
  BeginTask(Work::kShort);
  core_->durable->Save(use_.record(), session,
                       [this, self = shared_from_this(), answer](const absl::Status& status) {
                         if (status.ok()) answer();
                         EndTask(Work::kShort, status);
                       });
}

bool SessionCall::Prepare(const grpc::ByteBuffer& message, const Ready& ready) {
  if (core_->durable == nullptr) return false;
  wire::MessageReader reader(message);
  v1::CalcMaskRequest::Open open;  // all calls have the session's id there
  const absl::StatusOr<int> field = reader.Next();
  if (!field.ok() || *field != wire::kOpenOrResult || !reader.Parse(&open).ok()) return false;
  absl::StatusOr<SessionUse> use = core_->sessions->Use(context_->tenant(), open.session_id());
  if (!use.ok() || (*use)->loaded()) return false;
  const auto held = std::make_shared<SessionUse>(*std::move(use));
  core_->durable->Load(held->record(), [held, ready](const auto& status) {
    ready(status);
    held->Drop();
  });
  return true;
}

SessionCall::Expected SessionCall::CheckHeader(const v1::TensorHeader& header,
                                               absl::Span<const v1::TensorRole> roles) {
  if (std::find(roles.begin(), roles.end(), header.role()) == roles.end()) {
    const auto name = [](std::string* out, v1::TensorRole role) {
      absl::StrAppend(out, v1::TensorRole_Name(role));
    };
    AnswerError(header,
                absl::InvalidArgumentError(absl::StrCat(
                    "role of tensor ", header.index(), " is ", static_cast<int>(header.role()),
                    "; it must be ", absl::StrJoin(roles, " or ", name))));
    return {};
  }
  const std::optional<int> layer = record().FindLayer(header.layer());
  if (!layer || !record().compressed(*layer)) {
    // The session says what is wrong, with a suggestion, which is too much work for this thread.
    RunInSession([this, header](compression::Session& session) {
      const absl::StatusOr<int> i = session.FindLayer(header.layer());
      if (!i.ok()) {
        AnswerError(header, i.status());
      } else if (record().kind() == compression::AlgorithmKind::kPruner) {
        AnswerError(header, session.CalcMask(*i, at::Tensor()).status());
      } else {
        AnswerError(header, session.QuantizeRange(*i, {}).status());
      }
      return absl::OkStatus();
    });
    return {};
  }
  if (absl::Status status = CheckAgainstBound(header, *layer); !status.ok()) {
    AnswerError(header, status);
    return {};
  }
  return {*layer, {true, 0}};
}

absl::Status SessionCall::CheckAgainstBound(const v1::TensorHeader& header, int layer) {
  const compression::Layer& bound = record().layer(layer);
  switch (header.role()) {
    case v1::TENSOR_ROLE_MASK:
      return CheckTensor(header, compression::DataType::kBit, bound.shape);
    case v1::TENSOR_ROLE_RANGE:
      return CheckTensor(header, compression::DataType::kFloat32, record().RangeShape(layer));
    case v1::TENSOR_ROLE_OUTPUT_RANGE:
    case v1::TENSOR_ROLE_INPUT_RANGE:
      return CheckTensor(header, compression::DataType::kFloat32, {2});
    default:
      return CheckTensor(header, bound.dtype, bound.shape);
  }
}

void SessionCall::AnswerDigest(const v1::TensorHeader& header, bool have) {
  if (header.digest().empty()) return;
  auto fields = std::make_unique<v1::CalcMaskResponse>();  // all responses have answers there
  v1::TensorAnswer* answer = fields->add_answers();
  answer->set_index(header.index());
  answer->set_answer(have ? v1::TensorAnswer::ANSWER_HAVE : v1::TensorAnswer::ANSWER_SEND);
  Reply reply;
  reply.fields = std::move(fields);
  Push(std::move(reply));
}

void SessionCall::UpdateSummary(const compression::Session& session) {
  record().SetSummary(Summarize(session));
}

void SessionCall::OnEnd() {
  if (!joined()) return;
  // Holds the session until the entry is right.
  record().strand().Post([self = shared_from_this(), this] {
    if (record().session() != nullptr) UpdateSummary(*record().session());
    use_.Drop();
  });
}

}  // namespace nni_compression::server
