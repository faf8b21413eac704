#include "server/calls/step_handler.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/convert/convert.h"
#include "server/sessions/session_report.h"

namespace nni_compression::server {

namespace v1 = ::nni::compression::v1;

namespace {

// Upper bounds: the fields of a channel, and of an entry without its channels and names.
constexpr uint64_t kStateChannelBytes = sizeof(float) + 5;
constexpr uint64_t kEntryBytes = 192;

void SetParameters(const std::optional<compression::QuantizationParameters>& parameters,
                   v1::LayerParameters* out) {
  out->set_unquantized(!parameters.has_value());
  if (!parameters) return;
  ToProto(*parameters, out->mutable_parameters());
  ScalesToProto(*parameters, out->mutable_parameters());
}

}  // namespace

absl::StatusOr<bool> StepHandler::OnOpen(wire::MessageReader& reader) {
  v1::StepRequest::Open open;
  if (absl::Status status = reader.Parse(&open); !status.ok()) return status;
  step_ = open.step();
  if (step_ < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("open.step is ", step_, "; it must be at least 0"));
  }
  return session_.Join(open.session_id());
}

absl::Status StepHandler::OnReady() {
  if (absl::Status status = session_.CheckKind(std::nullopt); !status.ok()) return status;
  MutexLock lock(&inputs_mutex_);
  // Every layer may become stale, and has a checksum.
  for (int i = 0; i < session_.record().layer_count(); ++i) {
    if (session_.record().compressed(i))
      answer_bytes_ += 8 + session_.record().layer(i).name.size();
  }
  return absl::OkStatus();
}

absl::StatusOr<TensorSink::Admission> StepHandler::OnHeader(const v1::TensorHeader& header,
                                                            Reservation& bookkeeping) {
  if (!header.digest().empty()) {
    return absl::InvalidArgumentError(absl::StrCat("headers: tensor ", header.index(),
                                                   " has a digest; it must be empty in Step"));
  }
  const SessionScope::Checked checked =
      session_.Check(header, {v1::TENSOR_ROLE_RANGE, v1::TENSOR_ROLE_OUTPUT_RANGE,
                              v1::TENSOR_ROLE_INPUT_RANGE, v1::TENSOR_ROLE_GRADIENT});
  size_t place = 0;
  {
    MutexLock lock(&inputs_mutex_);
    uint64_t bytes = kEntryBytes + header.layer().size();
    if (checked.layer && header.role() == v1::TENSOR_ROLE_RANGE) {
      bytes += header.byte_length() / (2 * sizeof(float)) * kStateChannelBytes;
    }
    if (absl::Status status = CountAnswer(bytes); !status.ok()) return status;
    place = inputs_.size();
    places_[header.index()] = place;
    inputs_.push_back(
        {header, bookkeeping.Split(bookkeeping.bytes() / 2), absl::OkStatus(), std::nullopt});
  }
  if (checked.layer) {
    Admission admission{true, 0};
    admission.layer = *checked.layer;
    return admission;
  }
  session_.Refuse(header, checked.error, [this, place](const absl::Status& error) {
    SetError(place, error);
    return Reply();
  });
  return Admission();
}

void StepHandler::SetError(size_t input, const absl::Status& error) {
  MutexLock lock(&inputs_mutex_);
  inputs_[input].error = error;
}

absl::Status StepHandler::OnTensor(ReceivedTensor tensor) {
  session_.CountReceived(tensor.bytes.size());
  ++received_;
  MutexLock lock(&inputs_mutex_);
  Input& input = inputs_[places_.at(tensor.header.index())];
  input.tensor = std::move(tensor);
  return absl::OkStatus();
}

absl::Status StepHandler::OnHalfClose() {
  session_.Run([this](compression::Session& session) { return Apply(session); });
  return absl::OkStatus();
}

absl::Status StepHandler::CountAnswer(uint64_t bytes) {
  answer_bytes_ += bytes;
  if (answer_bytes_ <= static_cast<uint64_t>(wire::kMaxMessageBytes)) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("the reply would take up to ", answer_bytes_, " bytes; at most ",
                   wire::kMaxMessageBytes, " are allowed: send the ranges with QuantizeWeight"));
}

absl::StatusOr<Reply> StepHandler::Apply(compression::Session& session) {
  MutexLock lock(&inputs_mutex_);
  // Checked again, since a half-close and a dead client look alike at first.
  if (call_->cancelled()) return absl::CancelledError("cancelled");
  for (const Input& input : inputs_) {
    if (absl::Status status = CountAnswer(input.error.message().size()); !status.ok()) {
      return status;
    }
  }
  for (const Input& input : inputs_) {
    if (!input.tensor) continue;
    if (absl::Status status = VerifyChecksum(*input.tensor); !status.ok()) return status;
  }
  // Before any change.
  absl::StatusOr<Reservation> bookkeeping =
      session_.ReserveBookkeeping(static_cast<int64_t>(answer_bytes_));
  if (!bookkeeping.ok()) return bookkeeping.status();
  const absl::StatusOr<bool> applied = session.Step(step_);
  if (!applied.ok()) return applied.status();
  auto response = std::make_unique<v1::StepResponse>();
  for (const Input& input : inputs_) {
    ApplyInput(session, *applied, input, response->add_parameters());
  }
  inputs_.clear();
  response->set_step(session.clock().step);
  StaleLayers(session, response->mutable_stale_layers());
  MaskChecksums(session, response->mutable_masks());
  session_.UpdateSummary(session);
  Reply reply;
  bookkeeping->ShrinkTo(static_cast<int64_t>(response->ByteSizeLong()));
  reply.fields = std::move(response);
  reply.bookkeeping = *std::move(bookkeeping);
  reply.last = true;
  return reply;
}

void StepHandler::ApplyInput(compression::Session& session, bool applied, const Input& input,
                             v1::LayerParameters* out) {
  out->set_layer(input.header.layer());
  out->set_role(input.header.role());
  if (!input.tensor) return ToProto(input.error, out->mutable_error());
  const absl::Status status = [&] {
    switch (input.header.role()) {
      case v1::TENSOR_ROLE_RANGE:
        return ApplyRange(session, applied, input, out);
      case v1::TENSOR_ROLE_GRADIENT:
        return applied ? ApplyGradient(session, input) : absl::OkStatus();
      default:
        return ApplyActivation(session, applied, input, out);
    }
  }();
  if (!status.ok()) ToProto(status, out->mutable_error());
}

absl::Status StepHandler::ApplyRange(compression::Session& session, bool applied,
                                     const Input& input, v1::LayerParameters* out) {
  const int layer = input.tensor->layer;
  std::optional<compression::QuantizationParameters> parameters = session.state(layer).parameters;
  if (applied) {
    auto result = session.QuantizeRange(layer, ToRange(input.tensor->bytes));
    if (!result.ok()) return result.status();
    parameters = std::move(result->parameters);
  }
  SetParameters(parameters, out);
  ToProto(session.RememberedOf(layer), out->mutable_memory());
  return absl::OkStatus();
}

absl::Status StepHandler::ApplyGradient(compression::Session& session, const Input& input) {
  const int layer = input.tensor->layer;
  const compression::Layer& bound = session.layer(layer);
  return session.AddGradient(layer, input.tensor->bytes.AsTensor(bound.dtype, bound.shape));
}

absl::Status StepHandler::ApplyActivation(compression::Session& session, bool applied,
                                          const Input& input, v1::LayerParameters* out) {
  const int layer = input.tensor->layer;
  const auto activation = input.header.role() == v1::TENSOR_ROLE_OUTPUT_RANGE
                              ? compression::Activation::kOutput
                              : compression::Activation::kInput;
  auto answer = applied ? session.ObserveActivation(layer, activation, ToRange(input.tensor->bytes))
                        : session.QuantizeActivation(layer, activation);
  if (!answer.ok()) return answer.status();
  SetParameters(answer->parameters, out);
  ToProto(session.RememberedOf(layer), out->mutable_memory());
  if (answer->range) {
    out->add_range(answer->range->minimum[0]);
    out->add_range(answer->range->maximum[0]);
  }
  return absl::OkStatus();
}

}  // namespace nni_compression::server
