#include "server/sessions/session_report.h"

#include <string>

#include "server/convert/convert.h"
#include "server/convert/json.h"

namespace nni_compression::server {

namespace v1 = ::nni::compression::v1;

namespace {

// A larger config_list is not kept for the last report.
constexpr size_t kMaxConfigListBytes = 64 << 10;
constexpr size_t kValueBytes = 8;  // a number, or what is around another value

// About what `value` takes in a message.
size_t WireBytes(const nlohmann::json& value) {
  size_t bytes = kValueBytes;
  if (value.is_string()) bytes += value.get_ref<const std::string&>().size();
  if (value.is_array()) {
    for (const nlohmann::json& element : value) bytes += WireBytes(element);
  }
  if (value.is_object()) {
    for (const auto& [key, element] : value.items()) bytes += key.size() + WireBytes(element);
  }
  return bytes;
}

}  // namespace

SessionRecord::Summary Summarize(const compression::Session& session) {
  SessionRecord::Summary summary;
  summary.epoch = session.clock().epoch;
  summary.step = session.clock().step;
  summary.state_bytes = session.StateBytes();
  for (size_t i = 0; i < session.plan().layers.size(); ++i) {
    for (const auto& [kind, statistic] : session.state(static_cast<int>(i)).statistics) {
      summary.statistic_sources += static_cast<int64_t>(statistic->sources.size());
    }
  }
  if (session.algorithm().kind != compression::AlgorithmKind::kPruner) return summary;
  double elements = 0;
  double pruned = 0;
  for (size_t i = 0; i < session.plan().layers.size(); ++i) {
    if (session.plan().layers[i].planned == nullptr) continue;
    elements += static_cast<double>(session.layer(static_cast<int>(i)).elements);
    pruned += static_cast<double>(session.state(static_cast<int>(i)).pruned());
  }
  if (elements > 0) summary.achieved_sparsity = pruned / elements;
  return summary;
}

void DescribeSession(const SessionRecord& record, const SessionTimes& times, v1::Session* out) {
  const SessionRecord::Summary summary = record.summary();
  out->set_id(record.id());
  out->set_algorithm(record.algorithm());
  out->set_framework(record.framework());
  out->mutable_labels()->insert(record.labels().begin(), record.labels().end());
  out->set_state(static_cast<v1::SessionState>(record.state()));
  ToProto(times.created, out->mutable_create_time());
  ToProto(times.last_call, out->mutable_last_call_time());
  if (record.state() == SessionState::kActive) {
    ToProto(times.lease_left, out->mutable_lease());
    out->set_disk_bytes(static_cast<uint64_t>(record.disk_bytes()));
  }
  out->set_epoch(summary.epoch);
  out->set_step(summary.step);
  out->set_layer_count(static_cast<uint32_t>(record.layer_count()));
  out->set_compressed_layer_count(static_cast<uint32_t>(record.compressed_layers()));
  if (summary.achieved_sparsity) out->set_achieved_sparsity(*summary.achieved_sparsity);
  out->set_revision(record.revision.load());
  out->set_state_bytes(static_cast<uint64_t>(summary.state_bytes));
  out->set_received_bytes(static_cast<uint64_t>(record.received_bytes.load()));
  out->set_sent_bytes(static_cast<uint64_t>(record.sent_bytes.load()));
  ToProto(absl::Nanoseconds(record.compute_nanoseconds.load()), out->mutable_compute_time());
  const Results results = record.results();
  out->mutable_results()->insert(results.begin(), results.end());
}

void DescribeConfigList(const compression::Session& session, v1::Session* out) {
  size_t bytes = 0;
  for (const nlohmann::json& rule : session.binding().config_list) {
    bytes += WireBytes(rule);
    if (bytes > kMaxConfigListBytes) return;
  }
  for (const nlohmann::json& rule : session.binding().config_list) {
    ToProto(rule, out->add_config_list());
  }
}

void DescribeLayers(const compression::Session& session, v1::Session* out) {
  for (size_t n = 0; n < session.plan().layers.size(); ++n) {
    const int i = static_cast<int>(n);
    const compression::Layer& layer = session.layer(i);
    const compression::LayerPlan& plan = session.plan().layers[n];
    v1::LayerReport* report = out->add_layers();
    report->set_name(layer.name);
    report->set_op_type(layer.op_type);
    report->set_elements(static_cast<uint64_t>(layer.elements));
    report->set_compressed(plan.planned != nullptr);
    if (plan.rule) report->set_rule(static_cast<uint32_t>(*plan.rule));
    if (plan.planned == nullptr) continue;
    report->set_stale(session.IsStale(i));
    for (const auto& [kind, statistic] : session.state(i).statistics) {
      v1::StatisticReport* const to = report->add_statistics();
      to->set_kind(static_cast<v1::StatisticKind>(kind));
      to->set_bytes(static_cast<uint64_t>(statistic->bytes()));
      for (const auto& [source, total] : statistic->sources) {
        v1::StatisticReport::Source* const of_source = to->add_sources();
        of_source->set_source(static_cast<uint32_t>(source));
        of_source->set_sequence(total->sequence);
        of_source->set_digest(total->digest);
        of_source->set_count(static_cast<uint64_t>(total->count));
      }
    }
    const compression::Traits& traits = plan.planned->traits();
    if (session.algorithm().kind == compression::AlgorithmKind::kPruner) {
      const auto target = session.TargetSparsity(*plan.planned, session.clock().epoch);
      if (target && !traits.joint) report->set_target_sparsity(*target);
      const compression::LayerState& state = session.state(i);
      report->set_achieved_sparsity(static_cast<double>(state.pruned()) /
                                    static_cast<double>(layer.elements));
    } else {
      if (traits.bits > 0) report->set_bits(static_cast<uint32_t>(traits.bits));
      for (const auto activation :
           {compression::Activation::kOutput, compression::Activation::kInput}) {
        if (!session.Quantizes(i, activation)) continue;
        const auto answer = session.QuantizeActivation(i, activation);
        if (!answer.ok() || !answer->parameters) continue;
        v1::QuantizationParameters* parameters = activation == compression::Activation::kOutput
                                                     ? report->mutable_output()
                                                     : report->mutable_input();
        ToProto(*answer->parameters, parameters);
        ScalesToProto(*answer->parameters, parameters);
      }
    }
  }
}

void MaskChecksums(const compression::Session& session,
                   google::protobuf::RepeatedField<uint32_t>* out) {
  if (session.algorithm().kind != compression::AlgorithmKind::kPruner) return;
  for (size_t i = 0; i < session.plan().layers.size(); ++i) {
    if (session.plan().layers[i].planned == nullptr) continue;
    out->Add(session.MaskChecksum(static_cast<int>(i)));
  }
}

void StaleLayers(const compression::Session& session,
                 google::protobuf::RepeatedPtrField<std::string>* out) {
  for (const int i : session.StaleLayers()) *out->Add() = session.layer(i).name;
}

}  // namespace nni_compression::server
