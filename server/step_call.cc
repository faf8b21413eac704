#include "server/step_call.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/convert.h"
#include "server/report.h"

namespace nni_compression::server {

namespace v1 = ::nni::compression::v1;

namespace {

// Most that the fields of a channel, and of an entry beside its channels and names, take.
constexpr uint64_t kStateChannelBytes = sizeof(float) + 5;
constexpr uint64_t kEntryBytes = 128;

grpc::ByteBuffer Serialize(const v1::StepResponse& response) {
  const grpc::Slice slice(response.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

void SetParameters(const std::optional<compression::QuantizationParameters>& parameters,
                   v1::LayerParameters* out) {
  out->set_unquantized(!parameters.has_value());
  if (!parameters) return;
  ToProto(*parameters, out->mutable_parameters());
  ScalesToProto(*parameters, out->mutable_parameters());
}

}  // namespace

absl::Status StepCall::OnOpen(wire::MessageReader& reader) {
  v1::StepRequest::Open open;
  if (absl::Status status = reader.Parse(&open); !status.ok()) return status;
  step_ = open.step();
  if (step_ < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("open.step is ", step_, "; it must be at least 0"));
  }
  return Join(open.session_id(), std::nullopt);
}

absl::StatusOr<TensorSink::Admission> StepCall::OnHeader(const v1::TensorHeader& header) {
  if (!header.digest().empty()) {
    return absl::InvalidArgumentError(absl::StrCat("headers: tensor ", header.index(),
                                                   " has a digest; Step has no answer for one"));
  }
  {
    MutexLock lock(&inputs_mutex_);
    places_[header.index()] = inputs_.size();
    inputs_.push_back({header, absl::OkStatus(), std::nullopt});
  }
  const Expected expected =
      CheckHeader(header, {v1::TENSOR_ROLE_RANGE, v1::TENSOR_ROLE_OUTPUT_RANGE,
                           v1::TENSOR_ROLE_INPUT_RANGE, v1::TENSOR_ROLE_GRADIENT});
  return expected.admission;
}

absl::Status StepCall::OnTensor(ReceivedTensor tensor) {
  CountReceived(tensor.bytes.size());
  ++received_;
  MutexLock lock(&inputs_mutex_);
  Input& input = inputs_[places_.at(tensor.header.index())];
  input.tensor = std::move(tensor);
  return absl::OkStatus();
}

void StepCall::AnswerError(const v1::TensorHeader& header, const absl::Status& error) {
  MutexLock lock(&inputs_mutex_);
  inputs_[places_.at(header.index())].error = error;
}

absl::Status StepCall::OnHalfClose() {
  RunInSession([this](compression::Session& session) { return Apply(session); });
  return absl::OkStatus();
}

absl::Status StepCall::CheckSize(const compression::Session& session) const {
  uint64_t bytes = 0;
  for (const Input& input : inputs_) {
    bytes += kEntryBytes + input.header.layer().size() + input.error.message().size();
    if (input.tensor && input.header.role() == v1::TENSOR_ROLE_RANGE) {
      bytes += input.header.byte_length() / (2 * sizeof(float)) * kStateChannelBytes;
    }
  }
  // Any layer may become stale.
  for (size_t i = 0; i < session.plan().layers.size(); ++i) {
    if (session.plan().layers[i].planned == nullptr) continue;
    bytes += 4 + session.layer(static_cast<int>(i)).name.size();
  }
  if (bytes <= static_cast<uint64_t>(wire::kMaxMessageBytes)) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("the reply would take up to ", bytes, " bytes; at most ", wire::kMaxMessageBytes,
                   " are allowed: send the ranges with QuantizeWeight"));
}

absl::Status StepCall::Apply(compression::Session& session) {
  MutexLock lock(&inputs_mutex_);
  // Once more, since a half-close and a client that died look alike at first.
  if (cancelled()) return absl::CancelledError("cancelled");
  if (absl::Status status = CheckSize(session); !status.ok()) return status;
  for (const Input& input : inputs_) {
    if (!input.tensor) continue;
    if (absl::Status status = VerifyChecksum(*input.tensor); !status.ok()) return status;
  }
  const absl::StatusOr<bool> applied = session.Step(step_);
  if (!applied.ok()) return applied.status();
  v1::StepResponse response;
  for (const Input& input : inputs_) {
    ApplyInput(session, *applied, input, response.add_parameters());
  }
  inputs_.clear();
  response.set_step(session.clock().step);
  StaleLayers(session, response.mutable_stale_layers());
  UpdateSummary(session);
  WhenStored([this, bytes = Serialize(response)] { CompleteWith(bytes); });
  return absl::OkStatus();
}

void StepCall::ApplyInput(compression::Session& session, bool applied, const Input& input,
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

absl::Status StepCall::ApplyRange(compression::Session& session, bool applied, const Input& input,
                                  v1::LayerParameters* out) {
  const int layer = *session.FindLayer(input.header.layer());
  std::optional<compression::QuantizationParameters> parameters = session.state(layer).parameters;
  if (applied) {
    auto result = session.QuantizeRange(layer, ToRange(input.tensor->bytes));
    if (!result.ok()) return result.status();
    parameters = std::move(result->parameters);
  }
  SetParameters(parameters, out);
  return absl::OkStatus();
}

absl::Status StepCall::ApplyGradient(compression::Session& session, const Input& input) {
  const int layer = *session.FindLayer(input.header.layer());
  const compression::Layer& bound = session.layer(layer);
  return session.AddGradient(layer, input.tensor->bytes.AsTensor(bound.dtype, bound.shape));
}

absl::Status StepCall::ApplyActivation(compression::Session& session, bool applied,
                                       const Input& input, v1::LayerParameters* out) {
  const int layer = *session.FindLayer(input.header.layer());
  const auto activation = input.header.role() == v1::TENSOR_ROLE_OUTPUT_RANGE
                              ? compression::Activation::kOutput
                              : compression::Activation::kInput;
  auto answer = applied ? session.ObserveActivation(layer, activation, ToRange(input.tensor->bytes))
                        : session.QuantizeActivation(layer, activation);
  if (!answer.ok()) return answer.status();
  SetParameters(answer->parameters, out);
  if (answer->range) {
    out->add_range(answer->range->minimum[0]);
    out->add_range(answer->range->maximum[0]);
  }
  return absl::OkStatus();
}

}  // namespace nni_compression::server
