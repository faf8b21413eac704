#include "server/calls/session_scope.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "compression/messages/suggest.h"
#include "server/convert/convert.h"
#include "server/sessions/session_report.h"

namespace nni_compression::server {

namespace v1 = ::nni::compression::v1;

using compression::Session;

namespace {

// Memory of the answer to a digest.
constexpr int64_t kDigestAnswerBytes = 256;

}  // namespace

SessionScope::SessionScope(Components* components, std::shared_ptr<CallContext> context,
                           StreamCall* call)
    : components_(components), context_(std::move(context)), call_(call) {}

absl::StatusOr<bool> SessionScope::Join(absl::string_view session_id) {
  context_->set_session(session_id);
  absl::StatusOr<SessionUse> use = components_->sessions->Use(context_->tenant(), session_id);
  if (!use.ok()) return use.status();
  if (absl::Status status = context_->CheckRevision(session_id, (*use)->revision); !status.ok())
    return status;
  use_ = *std::move(use);
  record_ = use_.record();
  return record_->loaded();
}

StreamHandler::Loader SessionScope::MakeLoader() const {
  return [durable = components_->durable, record = record_](StreamHandler::Ready ready) {
    durable->Load(record, std::move(ready));
  };
}

absl::Status SessionScope::CheckKind(std::optional<compression::AlgorithmKind> kind) const {
  if (record().state() != SessionState::kActive) return NoSession(record());
  if (!kind || *kind == record().kind()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the session's algorithm is ", record().algorithm(), ", which is not a ",
                   *kind == compression::AlgorithmKind::kPruner ? "pruner" : "quantizer"));
}

absl::StatusOr<Reply> SessionScope::Compute(
    absl::FunctionRef<absl::StatusOr<Reply>(Session&)> task) {
  Session* const session = record().session();
  if (session == nullptr || record().ending()) return NoSession(record());
  // Not the system clock, which may be set in the meantime.
  const auto start = std::chrono::steady_clock::now();
  absl::StatusOr<Reply> reply = CatchExceptions([&] { return task(*session); });
  const absl::Duration time = absl::FromChrono(std::chrono::steady_clock::now() - start);
  record().compute_nanoseconds += absl::ToInt64Nanoseconds(time);
  components_->metrics->Computed(record().algorithm(), time);
  return reply;
}

void SessionScope::Store(absl::StatusOr<Reply> reply, Work work) {
  if (components_->durable == nullptr || record().session() == nullptr) {
    return call_->EndTask(work, std::move(reply));
  }
  components_->durable->Save(record_, *record().session(),
                             [call = call_->shared_from_this(), context = context_, work,
                              reply = std::make_shared<absl::StatusOr<Reply>>(std::move(reply))](
                                 const absl::StatusOr<uint64_t>& revision) {
                               if (!revision.ok()) return call->EndTask(work, revision.status());
                               context->ReachedRevision(*revision);
                               call->EndTask(work, std::move(*reply));
                             });
}

SessionScope::Checked SessionScope::Check(const v1::TensorHeader& header,
                                          absl::Span<const v1::TensorRole> roles) const {
  if (std::find(roles.begin(), roles.end(), header.role()) == roles.end()) {
    const auto name = [](std::string* out, v1::TensorRole role) {
      absl::StrAppend(out, v1::TensorRole_Name(role));
    };
    return {std::nullopt,
            absl::InvalidArgumentError(absl::StrCat(
                "role of tensor ", header.index(), " is ", static_cast<int>(header.role()),
                "; it must be ", absl::StrJoin(roles, " or ", name)))};
  }
  const std::optional<int> layer = record().FindLayer(header.layer());
  if (!layer || !record().compressed(*layer)) return {};
  if (absl::Status status = CheckAgainstBound(header, *layer); !status.ok()) {
    return {std::nullopt, status};
  }
  return {layer, absl::OkStatus()};
}

absl::Status SessionScope::CheckAgainstBound(const v1::TensorHeader& header, int layer) const {
  const compression::Layer& bound = record().layer(layer);
  switch (header.role()) {
    case v1::TENSOR_ROLE_MASK:
      return CheckTensor(header, compression::DataType::kBit, bound.shape);
    case v1::TENSOR_ROLE_COUNTS:
      return CheckCounts(header, bound.dtype);
    case v1::TENSOR_ROLE_STATISTIC:
      return CheckStatistic(header, bound);
    case v1::TENSOR_ROLE_RANGE:
      return CheckTensor(header, compression::DataType::kFloat32, record().RangeShape(layer));
    case v1::TENSOR_ROLE_OUTPUT_RANGE:
    case v1::TENSOR_ROLE_INPUT_RANGE:
      return CheckTensor(header, compression::DataType::kFloat32, {2});
    default:
      return CheckTensor(header, bound.dtype, bound.shape);
  }
}

absl::Status SessionScope::CheckSuggestions(const std::string& name) {
  if (record().FindLayer(name) || suggestions_++ < kMaxSuggestions) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat("the session has no layer ", compression::Quoted(name)));
}

absl::Status SessionScope::WhyNot(Session& session, const std::string& name) const {
  const absl::StatusOr<int> layer = session.FindLayer(name);
  if (!layer.ok()) return layer.status();
  // The layer is not compressed; the session returns that error before it checks anything else.
  if (record().kind() == compression::AlgorithmKind::kPruner) {
    return session.CalcMask(*layer, at::Tensor()).status();
  }
  return session.QuantizeRange(*layer, {}).status();
}

void SessionScope::AnswerDigest(const v1::TensorHeader& header, bool have,
                                Reservation& bookkeeping) {
  if (header.digest().empty()) return;
  auto fields = std::make_unique<v1::CalcMaskResponse>();  // the field of answers is the same in
                                                           // all responses
  v1::TensorAnswer* answer = fields->add_answers();
  answer->set_index(header.index());
  answer->set_answer(have ? v1::TensorAnswer::ANSWER_HAVE : v1::TensorAnswer::ANSWER_SEND);
  Reply reply;
  reply.fields = std::move(fields);
  reply.bookkeeping = bookkeeping.Split(kDigestAnswerBytes);
  call_->Push(std::move(reply));
}

absl::StatusOr<Reservation> SessionScope::ReserveBookkeeping(int64_t bytes) {
  return components_->budget->ReserveNow(bytes, context_->memory_quota(), MemoryUse::kBookkeeping,
                                         "an answer");
}

void SessionScope::UpdateSummary(const Session& session) {
  record().SetSummary(Summarize(session));
}

void SessionScope::CountReceived(int64_t bytes) {
  record().received_bytes += bytes;
  context_->CountReceived(bytes);
}

void SessionScope::CountSent(int64_t bytes) {
  record().sent_bytes += bytes;
  context_->CountSent(bytes);
}

void SessionScope::End() {
  if (!joined()) return;
  record().strand().Post([this, call = call_->shared_from_this()] {
    if (const Session* session = record().session()) UpdateSummary(*session);
    use_.Drop();
  });
}

}  // namespace nni_compression::server
