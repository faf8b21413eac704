// CalcMask, QuantizeWeight and AddStatistics: tensors of layers in, one answer to each out.
#ifndef NNI_COMPRESSION_SERVER_CALLS_LAYER_HANDLER_H_
#define NNI_COMPRESSION_SERVER_CALLS_LAYER_HANDLER_H_

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "server/calls/layer_tensors.h"
#include "server/calls/session_scope.h"
#include "server/tensors/stream_call.h"

namespace nni_compression::server {

// What a Method of LayerHandler needs whose tensors never wait for each other.
template <typename ResultType>
struct AnsweredApart {
  using Result = ResultType;

  static std::optional<compression::AlgorithmKind> KindFor(nni::compression::v1::TensorRole) {
    return std::nullopt;
  }
  static bool MayWait(const SessionRecord&, int) { return false; }
  bool Waits(const compression::Session&, const ReceivedTensor&) const { return false; }
  std::vector<absl::StatusOr<Result>> ComputeTogether(compression::Session&,
                                                      absl::Span<ReceivedTensor* const>) const {
    return {};
  }
};

// Answers every tensor separately, as soon as it is received, or those that wait for each other
// once the client half-closes. A Method defines what is computed:
//
//   using Open = ...;                       // the message that opens the call
//   using Result = ...;                     // what the session returns
//   static constexpr TensorRole kRoles[];   // roles that its tensors may have
//   // The kind that the session's algorithm must have: for the call, for a tensor of this role.
//   static std::optional<AlgorithmKind> Kind();
//   static std::optional<AlgorithmKind> KindFor(TensorRole);
//   absl::Status Configure(const Open&);
//   // Of the result of a tensor that passed the checks.
//   int64_t ResultBytes(const SessionRecord&, int layer, const TensorHeader&) const;
//   // Of what only the session's new state has until it is stored, in addition to the result.
//   static int64_t UnstoredBytes(const TensorHeader&);
//   // FAILED_PRECONDITION when the trainer's epoch or step is not the session's.
//   absl::Status CheckClock(const Session&) const;
//   // Whether tensors of the layer may wait for those of others.
//   static bool MayWait(const SessionRecord&, int layer);
//   // Whether this one does.
//   bool Waits(const Session&, const ReceivedTensor&) const;
//   // The results of all that waited. An error fails its layer only.
//   std::vector<absl::StatusOr<Result>> ComputeTogether(Session&, Span<ReceivedTensor* const>)
//   const;
//   // An error fails this layer only.
//   absl::StatusOr<Result> Compute(Session&, ReceivedTensor&) const;
//   // An error ends the call.
//   absl::StatusOr<Reply> Answer(const Session&, const ReceivedTensor&, Result, const
//   LayerTensors&);
//   // The fields of an error answer.
//   static std::unique_ptr<MessageLite> Refusal(const TensorHeader&, const absl::Status&);
//
// Functions with a Session parameter run on its strand.
template <typename Method>
class LayerHandler final : public StreamHandler {
 public:
  LayerHandler(Components* components, const std::shared_ptr<CallContext>& context,
               StreamCall* call)
      : call_(call), session_(components, context, call), tensors_(components, context->tenant()) {}

 private:
  using TensorHeader = nni::compression::v1::TensorHeader;

  // Work on fewer bytes is as short as the small calls that would wait for it.
  static constexpr int64_t kLongWorkBytes = 4 << 20;

  absl::StatusOr<bool> OnOpen(wire::MessageReader& reader) override {
    typename Method::Open open;
    if (absl::Status status = reader.Parse(&open); !status.ok()) return status;
    if (absl::Status status = method_.Configure(open); !status.ok()) return status;
    return session_.Join(open.session_id());
  }

  Loader MakeLoader() override { return session_.MakeLoader(); }

  absl::Status OnReady() override { return session_.CheckKind(Method::Kind()); }

  absl::StatusOr<Admission> OnHeader(const TensorHeader& header,
                                     Reservation& bookkeeping) override {
    const SessionScope::Checked checked = session_.Check(header, Method::kRoles);
    if (!checked.layer) {
      Refuse(header, checked.error, bookkeeping);
      return Admission();
    }
    absl::Status kind = session_.CheckKind(Method::KindFor(header.role()));
    if (!kind.ok()) return kind;
    Admission admission{true, method_.ResultBytes(session_.record(), *checked.layer, header)};
    admission.layer = *checked.layer;
    const bool known = tensors_.FindKnown(header, &admission);
    session_.AnswerDigest(header, known, bookkeeping);
    if (absl::Status status = tensors_.FindShared(header, &admission); !status.ok()) {
      Refuse(header, status, bookkeeping);
      return Admission();
    }
    return admission;
  }

  absl::Status OnTensor(ReceivedTensor tensor) override {
    session_.CountReceived(tensor.bytes.size());
    holds_ |= Method::MayWait(session_.record(), tensor.layer);
    const Work work = WorkOf(tensor);
    session_.Run(
        [this, tensor = std::make_shared<ReceivedTensor>(std::move(tensor))](
            compression::Session& session) -> absl::StatusOr<Reply> {
          if (absl::Status status = method_.CheckClock(session); !status.ok()) return status;
          if (absl::Status status = VerifyChecksum(*tensor); !status.ok()) return status;
          if (!method_.Waits(session, *tensor)) {
            return Answer(session, *tensor, method_.Compute(session, *tensor));
          }
          waiting_.push_back(tensor);
          return Reply();
        },
        work);
    return absl::OkStatus();
  }

  absl::Status OnHalfClose() override {
    session_.Run([this](compression::Session& session) -> absl::StatusOr<Reply> {
      // Before anything is decided, since a half-close and a dead client look alike at first.
      if (call_->cancelled()) return absl::CancelledError("cancelled");
      if (absl::Status status = method_.CheckClock(session); !status.ok()) return status;
      if (waiting_.empty()) return Finish(session);
      AnswerTogether(session);
      session_.Run([this](compression::Session& session) { return Finish(session); });
      return Reply();
    });
    return absl::OkStatus();
  }

  bool HoldsTensors() const override { return holds_; }

  void OnEnd() override { session_.End(); }

  static Work WorkOf(const ReceivedTensor& tensor) {
    return tensor.bytes.size() < kLongWorkBytes ? Work::kShort : Work::kLong;
  }

  // On the session's strand, from here on.

  // What is decided is stored when this task ends, and answered by tasks of their own after that.
  void AnswerTogether(compression::Session& session) {
    std::vector<ReceivedTensor*> tensors;
    tensors.reserve(waiting_.size());
    for (const auto& tensor : waiting_) tensors.push_back(tensor.get());
    auto results = method_.ComputeTogether(session, tensors);
    for (size_t i = 0; i < waiting_.size(); ++i) {
      session_.Run([this, tensor = std::move(waiting_[i]), result = std::move(results[i])](
                       compression::Session& session) { return Answer(session, *tensor, result); });
    }
    waiting_.clear();
  }

  absl::StatusOr<Reply> Finish(const compression::Session& session) {
    session_.UpdateSummary(session);
    Reply reply;
    reply.last = true;
    return reply;
  }

  absl::StatusOr<Reply> Answer(compression::Session& session, ReceivedTensor& tensor,
                               absl::StatusOr<typename Method::Result> result) {
    if (!LayerTensors::IsWorthKeeping(tensor)) return Apply(session, tensor, std::move(result));
    const compression::Buffer bytes = tensor.bytes;
    Reservation memory = tensor.memory.Split(bytes.size());
    absl::StatusOr<Reply> reply = Apply(session, tensor, std::move(result));
    if (!reply.ok()) return reply;
    absl::Status kept = tensors_.Keep(tensor.header, bytes, std::move(memory));
    if (!kept.ok()) return kept;
    return reply;
  }

  absl::StatusOr<Reply> Apply(compression::Session& session, ReceivedTensor& tensor,
                              absl::StatusOr<typename Method::Result> result) {
    tensor.bytes = {};
    if (!result.ok()) {
      Reply reply;
      reply.fields = Method::Refusal(tensor.header, result.status());
      reply.bookkeeping = std::move(tensor.bookkeeping);
      return reply;
    }
    absl::StatusOr<Reply> reply = method_.Answer(session, tensor, *std::move(result), tensors_);
    if (!reply.ok()) return reply;
    int64_t answered = 0, to_send = 0;
    for (const Payload& payload : reply->payloads) {
      answered += static_cast<int64_t>(payload.total);
      to_send += payload.bytes.size();
    }
    session_.CountSent(answered);
    // The reply is released once the session is stored.
    tensor.memory.ShrinkTo(to_send + Method::UnstoredBytes(tensor.header));
    reply->memory = std::make_shared<Reservation>(std::move(tensor.memory));
    reply->bookkeeping = std::move(tensor.bookkeeping);
    return reply;
  }

  // On any thread.
  void Refuse(const TensorHeader& header, const absl::Status& error, Reservation& bookkeeping) {
    const auto own = std::make_shared<Reservation>(bookkeeping.Split(bookkeeping.bytes() / 2));
    session_.Refuse(header, error, [header, own](const absl::Status& why) {
      Reply reply;
      reply.fields = Method::Refusal(header, why);
      reply.bookkeeping = std::move(*own);
      return reply;
    });
  }

  StreamCall* const call_;
  SessionScope session_;
  const LayerTensors tensors_;
  Method method_;
  bool holds_ = false;                                    // tensors until the half-close
  std::vector<std::shared_ptr<ReceivedTensor>> waiting_;  // on the session's strand
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_CALLS_LAYER_HANDLER_H_
