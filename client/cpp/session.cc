#include "nni_compression/session.h"

#include <grpcpp/support/proto_buffer_reader.h>

#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/connection.h"
#include "client/cpp/convert.h"
#include "client/cpp/export.h"
#include "client/cpp/replies.h"
#include "client/cpp/stream.h"
#include "client/cpp/transfer.h"
#include "client/cpp/upload.h"

namespace nni_compression {
namespace {

constexpr int64_t kMaxCodeBytes = 2;

using internal::BadReply;
using internal::Outcome;

absl::Status ParseWhole(grpc::ByteBuffer message, google::protobuf::MessageLite* out) {
  grpc::ProtoBufferReader bytes(&message);
  return out->ParseFromZeroCopyStream(&bytes) ? absl::OkStatus() : BadReply(out->GetTypeName());
}

absl::StatusOr<QuantizedTensor> ToQuantized(const v1::LayerParameters& in, const Tensor& sent) {
  if (in.has_error()) return internal::StatusOf(in.error());
  QuantizedTensor out;
  out.layer = in.layer();
  out.shape = sent.shape;
  out.memory = internal::MemoryOf(in.memory());
  out.unquantized = in.unquantized();
  if (out.unquantized || !in.has_parameters()) return out;
  auto parameters = internal::ParametersOf(in.parameters());
  if (!parameters.ok()) return parameters.status();
  out.parameters = *std::move(parameters);
  return out;
}

// Of each tensor, the rule if its layer is decided about together with others, else -1. Empty if
// there is no such rule.
std::vector<int> JointRules(const v1::Plan& plan, absl::Span<const Tensor> tensors) {
  std::set<int> joint;
  for (const v1::PlannedRule& rule : plan.rules()) {
    if (rule.joint()) joint.insert(rule.rule());
  }
  if (joint.empty()) return {};
  std::map<absl::string_view, int> rules;
  for (const v1::LayerPlan& layer : plan.layers()) {
    if (layer.compressed() && joint.count(layer.rule()) > 0) rules[layer.name()] = layer.rule();
  }
  std::vector<int> found;
  for (const Tensor& tensor : tensors) {
    const auto rule = rules.find(tensor.name);
    found.push_back(rule == rules.end() ? -1 : rule->second);
  }
  return found;
}

absl::StatusOr<StepResult> ToStepResult(const v1::StepResponse& response,
                                        absl::Span<const Tensor> inputs) {
  if (response.parameters_size() != static_cast<int>(inputs.size())) {
    return BadReply(
        absl::StrCat(response.parameters_size(), " answers to ", inputs.size(), " tensors"));
  }
  StepResult result;
  result.step = response.step();
  result.stale_layers = internal::ToVector(response.stale_layers());
  for (size_t i = 0; i < inputs.size(); ++i) {
    result.parameters.push_back(ToQuantized(response.parameters(static_cast<int>(i)), inputs[i]));
  }
  return result;
}

}  // namespace

Session::Session(std::shared_ptr<const internal::Connection> connection, std::string id,
                 std::string route, v1::Plan plan, std::vector<std::string> stale_layers)
    : connection_(std::move(connection)),
      id_(std::move(id)),
      route_(std::make_shared<const internal::Route>(std::move(route))),
      plan_(std::make_shared<const v1::Plan>(std::move(plan))),
      initial_stale_layers_(std::move(stale_layers)) {}

const std::string& Session::route() const { return route_->key; }

std::vector<absl::StatusOr<Mask>> Session::CalcMask(absl::Span<const Tensor> tensors,
                                                    const CallOptions& options) const {
  v1::CalcMaskRequest open;
  open.mutable_open()->set_session_id(id_);
  if (options.epoch) open.mutable_open()->set_epoch(*options.epoch);
  return internal::Transfer<Mask>(
      *connection_, "CalcMask", *route_, open, tensors, options,
      [](const Tensor& tensor) { return (internal::Elements(tensor) + 7) / 8; },
      JointRules(*plan_, tensors),
      [](auto sent, auto& results) { return internal::MaskReader(sent, results); });
}

std::vector<absl::StatusOr<QuantizedTensor>> Session::QuantizeWeight(
    absl::Span<const Tensor> tensors, QuantizeReply reply, const CallOptions& options) const {
  v1::QuantizeWeightRequest open;
  open.mutable_open()->set_session_id(id_);
  open.mutable_open()->set_reply(static_cast<v1::QuantizeWeightRequest::Reply>(reply));
  if (options.step) open.mutable_open()->set_step(*options.step);
  return internal::Transfer<QuantizedTensor>(
      *connection_, "QuantizeWeight", *route_, open, tensors, options,
      [reply](const Tensor& tensor) -> int64_t {
        if (reply == QuantizeReply::kCodes) return internal::Elements(tensor) * kMaxCodeBytes;
        return reply == QuantizeReply::kValues ? tensor.bytes.size() : 0;
      },
      {},
      [reply](auto sent, auto& results) { return internal::QuantizeReader(sent, reply, results); });
}

absl::StatusOr<std::vector<std::string>> Session::UpdateEpoch(int64_t epoch,
                                                              const CallOptions& options) const {
  v1::UpdateEpochRequest request;
  request.set_session_id(id_);
  request.set_epoch(epoch);
  auto response =
      connection_->Unary(&v1::CompressionService::Stub::UpdateEpoch, request, *route_, options);
  if (!response.ok()) return response.status();
  return internal::ToVector(response->stale_layers());
}

absl::StatusOr<StepResult> Session::Step(int64_t step, absl::Span<const Tensor> inputs,
                                         const CallOptions& options) const {
  v1::StepRequest open;
  open.mutable_open()->set_session_id(id_);
  open.mutable_open()->set_step(step);
  std::vector<const Tensor*> sent;
  for (const Tensor& tensor : inputs) {
    if (absl::Status checked = internal::CheckTensor(tensor); !checked.ok()) return checked;
    sent.push_back(&tensor);
  }
  v1::StepResponse response;
  const absl::Duration timeout =
      inputs.empty() ? connection_->options().timeout : connection_->options().transfer_timeout;
  absl::Status status =
      connection_->WithRetries(connection_->NewRetry(options, timeout), [&](absl::Time deadline) {
        bool answered = false;
        internal::Loans loans;
        internal::Upload::Options upload_options;
        upload_options.checksum = connection_->options().checksum;
        internal::Upload upload(open, sent, upload_options, loans);
        Outcome outcome = internal::RunStream(*connection_, {"Step", *route_, deadline}, upload,
                                              loans, [&](const grpc::ByteBuffer& message) {
                                                answered = true;
                                                return ParseWhole(message, &response);
                                              });
        if (outcome.status.ok() && !answered) outcome.status = BadReply("Step has no answer");
        return outcome;
      });
  if (!status.ok()) return status;
  return ToStepResult(response, inputs);
}

absl::Status Session::Export(absl::string_view format, absl::Span<const Tensor> tensors,
                             FileSink& sink, absl::string_view format_options,
                             const CallOptions& options) const {
  v1::ExportRequest open;
  open.mutable_open()->set_session_id(id_);
  open.mutable_open()->set_format(std::string(format));
  if (!format_options.empty()) {
    auto parsed = internal::ParseJsonObject(format_options, "format_options");
    if (!parsed.ok()) return parsed.status();
    *open.mutable_open()->mutable_options() = *std::move(parsed);
  }
  return internal::RunExport(*connection_, *route_, open, tensors, sink, options);
}

absl::Status Session::Report(const std::map<std::string, double>& results,
                             const CallOptions& options) const {
  v1::ReportResultsRequest request;
  request.set_session_id(id_);
  request.mutable_results()->insert(results.begin(), results.end());
  return connection_->Unary(&v1::CompressionService::Stub::ReportResults, request, *route_, options)
      .status();
}

absl::StatusOr<absl::Duration> Session::KeepAlive(const CallOptions& options) const {
  v1::KeepAliveRequest request;
  request.set_session_id(id_);
  auto response =
      connection_->Unary(&v1::CompressionService::Stub::KeepAlive, request, *route_, options);
  if (!response.ok()) return response.status();
  return internal::ToDuration(response->lease());
}

absl::Status Session::Close(const CallOptions& options) const {
  v1::CloseSessionRequest request;
  request.set_session_id(id_);
  return connection_->Unary(&v1::CompressionService::Stub::CloseSession, request, *route_, options)
      .status();
}

}  // namespace nni_compression
