#include "client/cpp/convert.h"

#include <google/protobuf/util/json_util.h>

#include "absl/strings/str_cat.h"

namespace nni_compression::internal {

absl::Duration ToDuration(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}

absl::StatusOr<google::protobuf::Struct> ParseJsonObject(absl::string_view json,
                                                         absl::string_view field) {
  google::protobuf::Struct parsed;
  const auto status = google::protobuf::util::JsonStringToMessage(std::string(json), &parsed);
  if (!status.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " is not a JSON object: ", std::string(status.message())));
  }
  return parsed;
}

absl::StatusOr<v1::BindModelRequest> ToProto(const BindRequest& request) {
  v1::BindModelRequest out;
  out.set_algorithm(request.algorithm);
  google::protobuf::ListValue rules;
  const auto status = google::protobuf::util::JsonStringToMessage(request.config_list, &rules);
  if (!status.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("config_list is not a JSON list: ", std::string(status.message())));
  }
  for (int i = 0; i < rules.values_size(); ++i) {
    if (!rules.values(i).has_struct_value()) {
      return absl::InvalidArgumentError(
          absl::StrCat("config_list[", i, "] is not an object; every rule must be one"));
    }
    *out.add_config_list() = std::move(*rules.mutable_values(i)->mutable_struct_value());
  }
  for (const Layer& layer : request.layers) {
    v1::Layer* to = out.add_layers();
    to->set_name(layer.name);
    to->set_op_type(layer.op_type);
    to->set_dtype(static_cast<v1::DataType>(layer.dtype));
    for (const int64_t dimension : layer.shape) to->add_shape(dimension);
    to->set_channel_axis(static_cast<uint32_t>(layer.channel_axis));
    for (const std::string& alias : layer.aliases) to->add_aliases(alias);
    to->set_needs_filter(layer.needs_filter);
    for (const std::string& base : layer.op_type_bases) to->add_op_type_bases(base);
  }
  for (const FilterGroup& group : request.filter_groups) {
    v1::FilterGroup* to = out.add_filter_groups();
    for (const FilterGroup::Member& member : group.members) {
      v1::FilterGroup::Member* added = to->add_members();
      added->set_layer(member.layer);
      added->mutable_units()->Add(member.units.begin(), member.units.end());
    }
    to->set_runs(group.runs);
  }
  out.set_framework(request.framework);
  out.set_vectors_need_filter(request.vectors_need_filter);
  for (const auto& [key, value] : request.labels) (*out.mutable_labels())[key] = value;
  if (request.lease) {
    absl::Duration rest = *request.lease;
    out.mutable_lease()->set_seconds(absl::IDivDuration(rest, absl::Seconds(1), &rest));
    out.mutable_lease()->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(rest)));
  }
  out.set_epoch(request.epoch);
  for (const InitialMemory& given : request.memory) {
    v1::LayerMemory* layer = out.add_memory();
    layer->set_layer(given.layer);
    for (const auto& [name, values] : given.memory) {
      v1::Memory* memory = layer->add_memory();
      memory->set_name(name);
      memory->mutable_values()->Add(values.begin(), values.end());
    }
  }
  out.set_step(request.step);
  out.set_step_applied(request.step_applied);
  return out;
}

}  // namespace nni_compression::internal
