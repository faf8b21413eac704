#include "server/convert/convert.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "compression/options/options.h"
#include "server/base/log.h"
#include "server/convert/json.h"

namespace nni_compression::server {

namespace v1 = ::nni::compression::v1;

namespace {

constexpr size_t kMaxErrorBytes = 2000;
constexpr int kMaxRules = 1024;

std::string ShapeText(absl::Span<const int64_t> shape) {
  // An invalid header may have any number of dimensions.
  const std::string text = absl::StrJoin(shape.first(std::min<size_t>(shape.size(), 64)), ", ");
  return absl::StrCat("[", text, shape.size() > 64 ? ", ..." : "", "]");
}

absl::Span<const int64_t> ShapeOf(const google::protobuf::RepeatedField<int64_t>& shape) {
  return absl::MakeConstSpan(shape.data(), static_cast<size_t>(shape.size()));
}

absl::StatusOr<compression::Layer> ToLayer(const v1::Layer& layer, const std::string& path) {
  const absl::StatusOr<compression::DataType> dtype = ToDataType(layer.dtype(), path + ".dtype");
  if (!dtype.ok()) return dtype.status();
  if (layer.channel_axis() > 64) {
    return absl::InvalidArgumentError(absl::StrCat(path, ".channel_axis is ", layer.channel_axis(),
                                                   "; it must be a dimension of the weight"));
  }
  compression::Layer out;
  out.name = layer.name();
  out.op_type = layer.op_type();
  out.dtype = *dtype;
  out.shape.assign(layer.shape().begin(), layer.shape().end());
  out.channel_axis = static_cast<int>(layer.channel_axis());
  out.aliases.assign(layer.aliases().begin(), layer.aliases().end());
  out.needs_filter = layer.needs_filter();
  out.op_type_bases.assign(layer.op_type_bases().begin(), layer.op_type_bases().end());
  return out;
}

v1::TensorRole RoleOf(compression::Observation::Kind kind) {
  switch (kind) {
    case compression::Observation::Kind::kGradient:
      return v1::TENSOR_ROLE_GRADIENT;
    case compression::Observation::Kind::kOutputRange:
      return v1::TENSOR_ROLE_OUTPUT_RANGE;
    default:
      return v1::TENSOR_ROLE_INPUT_RANGE;
  }
}

}  // namespace

absl::StatusOr<compression::DataType> ToDataType(v1::DataType dtype, absl::string_view field) {
  if (FindElementType(dtype) != nullptr) return static_cast<compression::DataType>(dtype);
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", static_cast<int>(dtype),
                                                 "; it must be in [", v1::DATA_TYPE_FLOAT32, ", ",
                                                 v1::DATA_TYPE_BIT, "]"));
}

v1::DataType ToProto(compression::DataType dtype) { return static_cast<v1::DataType>(dtype); }

absl::StatusOr<compression::Binding> ToBinding(const v1::BindModelRequest& request) {
  if (request.config_list_size() > kMaxRules) {
    return absl::InvalidArgumentError(absl::StrCat("config_list has ", request.config_list_size(),
                                                   " rules; it may have at most ", kMaxRules));
  }
  compression::Binding binding;
  binding.algorithm = request.algorithm();
  binding.framework = request.framework();
  binding.clock = {request.epoch(), request.step()};
  binding.step_applied = request.step_applied();
  binding.unfiltered = request.vectors_need_filter() ? compression::Unfiltered::kMatrices
                                                     : compression::Unfiltered::kEveryLayer;
  for (int i = 0; i < request.config_list_size(); ++i) {
    absl::StatusOr<nlohmann::json> rule =
        ToJson(request.config_list(i), absl::StrCat("config_list[", i, "]"));
    if (!rule.ok()) return rule.status();
    binding.config_list.push_back(*std::move(rule));
  }
  for (int i = 0; i < request.layers_size(); ++i) {
    absl::StatusOr<compression::Layer> layer =
        ToLayer(request.layers(i), absl::StrCat("layers[", i, "]"));
    if (!layer.ok()) return layer.status();
    binding.layers.push_back(*std::move(layer));
  }
  for (const v1::FilterGroup& group : request.filter_groups()) {
    compression::FilterGroup& to = binding.filter_groups.emplace_back();
    to.runs = std::max<int64_t>(1, group.runs());
    for (const v1::FilterGroup::Member& member : group.members()) {
      to.members.push_back({member.layer(), {member.units().begin(), member.units().end()}});
    }
  }
  return binding;
}

absl::Status CheckTensor(const v1::TensorHeader& header, compression::DataType dtype,
                         absl::Span<const int64_t> shape) {
  const std::string name = absl::StrCat("tensor ", header.index(), " ('", header.layer(), "')");
  const auto given = ToDataType(header.dtype(), absl::StrCat("dtype of ", name));
  if (!given.ok()) return given.status();
  if (*given != dtype) {
    return absl::InvalidArgumentError(
        absl::StrCat("dtype of ", name, " is ", compression::DataTypeName(*given), "; it must be ",
                     compression::DataTypeName(dtype)));
  }
  if (ShapeOf(header.shape()) != shape) {
    return absl::InvalidArgumentError(absl::StrCat("shape of ", name, " is ",
                                                   ShapeText(ShapeOf(header.shape())),
                                                   "; it must be ", ShapeText(shape)));
  }
  const absl::StatusOr<int64_t> elements = compression::CountElements(shape);
  if (!elements.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": ", elements.status().message()));
  }
  const int64_t length = compression::ByteLength(dtype, *elements);
  if (header.byte_length() != static_cast<uint64_t>(length)) {
    return absl::InvalidArgumentError(absl::StrCat("byte_length of ", name, " is ",
                                                   header.byte_length(), "; it must be ", length,
                                                   " for shape ", ShapeText(shape)));
  }
  return absl::OkStatus();
}

absl::Status CheckCounts(const v1::TensorHeader& header, compression::DataType dtype) {
  // A round of all digits takes less.
  constexpr int64_t kMaxRoundBytes = 1 << 20;
  const int64_t most = kMaxRoundBytes * compression::ThresholdSearch::Rounds(dtype);
  const auto bytes = static_cast<int64_t>(header.byte_length());
  if (bytes < 1 || bytes > most) {
    return absl::InvalidArgumentError(
        absl::StrCat("byte_length of the counts of '", Printable(header.layer(), 128), "' is ",
                     header.byte_length(), "; it must be in [1, ", most, "]"));
  }
  return CheckTensor(header, compression::DataType::kUInt8, {bytes});
}

absl::StatusOr<std::vector<compression::CountsRound>> ToCounts(const v1::TensorHeader& header,
                                                               const compression::Buffer& bytes) {
  const auto invalid = [&header](const auto&... text) {
    return absl::InvalidArgumentError(
        absl::StrCat("counts of '", Printable(header.layer(), 128), "': ", text...));
  };
  v1::MagnitudeCounts counts;
  if (!counts.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return invalid("they are not a MagnitudeCounts");
  }
  std::vector<compression::CountsRound> rounds;
  for (const v1::MagnitudeCounts::Round& from : counts.rounds()) {
    const std::string path = absl::StrCat("rounds[", rounds.size(), "]");
    if (from.digits_size() != from.counts_size()) {
      return invalid(path, " has ", from.digits_size(), " digits and ", from.counts_size(),
                     " counts; it must have as many of each");
    }
    compression::CountsRound& round = rounds.emplace_back();
    round.prefix = from.prefix();
    round.digits.reserve(static_cast<size_t>(from.digits_size()));
    uint64_t digit = 0;
    for (int i = 0; i < from.digits_size(); ++i) {
      digit += from.digits(i);
      if (digit > 0xffff || (i > 0 && from.digits(i) == 0)) {
        return invalid(path, ".digits[", i, "] is ", from.digits(i),
                       "; digits must ascend and be in [0, 65535]");
      }
      const auto count = static_cast<int64_t>(from.counts(i));
      if (count < 1) {
        return invalid(path, ".counts[", i, "] is ", from.counts(i), "; it must be in [1, 2^63)");
      }
      round.digits.push_back({static_cast<uint16_t>(digit), count});
    }
  }
  return rounds;
}

absl::Status CheckStatistic(const v1::TensorHeader& header, const compression::Layer& layer) {
  const std::string name = absl::StrCat("tensor ", header.index(), " ('", layer.name, "')");
  const auto kind = static_cast<int>(header.part().kind());
  const compression::StatisticInfo* const info = compression::FindStatistic(kind);
  if (info == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("part.kind of ", name, " is ", kind, "; it must be in [1, ",
                     compression::AllStatistics().size(), "], a StatisticKind"));
  }
  const auto dtype = ToDataType(header.dtype(), absl::StrCat("dtype of ", name));
  if (!dtype.ok()) return dtype.status();
  if (*dtype != compression::DataType::kFloat32 && *dtype != compression::DataType::kFloat64) {
    return absl::InvalidArgumentError(absl::StrCat("dtype of ", name, " is ",
                                                   compression::DataTypeName(*dtype),
                                                   "; it must be float32 or float64"));
  }
  const absl::Span<const int64_t> shape = ShapeOf(header.shape());
  absl::Status status = compression::CheckStatisticShape(*info, layer, shape);
  return status.ok() ? CheckTensor(header, *dtype, shape) : status;
}

compression::StatisticPart ToStatisticPart(const v1::TensorHeader& header,
                                           compression::Buffer bytes, std::string digest) {
  compression::StatisticPart part;
  part.kind = static_cast<compression::StatisticKind>(header.part().kind());
  part.source = header.part().source();
  part.sequence = header.part().sequence();
  // Beyond what fits it is too large in any case.
  part.count = static_cast<int64_t>(
      std::min<uint64_t>(header.part().count(), std::numeric_limits<int64_t>::max()));
  part.exponent = header.part().exponent();
  part.digest = std::move(digest);
  part.dtype = static_cast<compression::DataType>(header.dtype());
  part.shape.assign(header.shape().begin(), header.shape().end());
  part.bytes = std::move(bytes);
  return part;
}

compression::Range ToRange(const compression::Buffer& bytes) {
  const size_t half = static_cast<size_t>(bytes.size()) / 2;
  compression::Range range;
  range.minimum.resize(half / sizeof(float));
  range.maximum.resize(half / sizeof(float));
  std::memcpy(range.minimum.data(), bytes.data(), half);
  std::memcpy(range.maximum.data(), bytes.data() + half, half);
  return range;
}

void ToProto(const compression::QuantizationParameters& parameters,
             v1::QuantizationParameters* out) {
  out->set_formula(static_cast<v1::Formula>(parameters.formula));
  out->set_rounding(static_cast<v1::Rounding>(parameters.rounding));
  out->set_bits(static_cast<uint32_t>(parameters.bits));
  out->set_code_min(parameters.code_min);
  out->set_code_max(parameters.code_max);
  if (parameters.channel_axis) {
    out->set_channel_axis(static_cast<uint32_t>(*parameters.channel_axis));
  }
  out->set_group_size(static_cast<uint64_t>(parameters.group_size));
}

void ScalesToProto(const compression::QuantizationParameters& parameters,
                   v1::QuantizationParameters* out) {
  out->mutable_scale()->Add(parameters.scale.begin(), parameters.scale.end());
  out->mutable_zero_point()->Add(parameters.zero_point.begin(), parameters.zero_point.end());
}

compression::RememberedNumbers ToMemory(
    const google::protobuf::RepeatedPtrField<v1::Memory>& memory) {
  compression::RememberedNumbers found;
  for (const v1::Memory& one : memory) {
    found[one.name()].assign(one.values().begin(), one.values().end());
  }
  return found;
}

void ToProto(const compression::RememberedNumbers& memory,
             google::protobuf::RepeatedPtrField<v1::Memory>* out) {
  for (const auto& [name, values] : memory) {
    v1::Memory* one = out->Add();
    one->set_name(name);
    one->mutable_values()->Add(values.begin(), values.end());
  }
}

void ToProto(const absl::Status& status, v1::LayerError* out) {
  out->set_code(static_cast<int>(status.code()));
  out->set_message(Printable(status.message(), kMaxErrorBytes));
}

void ToProto(const compression::Plan& plan, absl::Span<const compression::Layer> layers,
             v1::Plan* out) {
  for (size_t i = 0; i < layers.size(); ++i) {
    const compression::LayerPlan& from = plan.layers[i];
    v1::LayerPlan* to = out->add_layers();
    to->set_name(layers[i].name);
    to->set_compressed(from.planned != nullptr);
    if (from.rule) to->set_rule(static_cast<uint32_t>(*from.rule));
    if (from.planned == nullptr) continue;
    for (const compression::StatisticInfo* info : from.planned->StatisticsOf(layers[i])) {
      v1::PlannedStatistic* const statistic = to->add_statistics();
      statistic->set_kind(static_cast<v1::StatisticKind>(info->kind));
      const auto shape = compression::PlannedShape(*info, layers[i]);  // it has one
      statistic->mutable_shape()->Add(shape->begin(), shape->end());
      if (info->kind == compression::StatisticKind::kOutputZeroCount ||
          info->kind == compression::StatisticKind::kOutputSum) {
        statistic->set_activation(static_cast<v1::Activation>(from.planned->traits().activation));
      }
    }
  }
  for (const auto& rule : plan.rules) {
    v1::PlannedRule* to = out->add_rules();
    to->set_rule(static_cast<uint32_t>(rule->rule));
    ToProto(rule->options.json(), to->mutable_options());
    const compression::Traits& traits = rule->traits();
    to->set_refresh(static_cast<v1::Refresh>(traits.refresh));
    to->set_remembers_more(traits.remembers_more);
    to->set_joint(rule->joint);
    to->set_takes_counts(rule->takes_counts);
    if (traits.wants_range_in_step) to->add_step_inputs(v1::TENSOR_ROLE_RANGE);
    for (const compression::Observation::Kind kind : traits.observes) {
      to->add_step_inputs(RoleOf(kind));
    }
    to->set_range_per_channel(traits.per_channel);
    to->set_range_group_size(static_cast<uint64_t>(traits.group_size));
  }
  out->mutable_warnings()->Add(plan.warnings.begin(), plan.warnings.end());
  out->set_needs_update_epoch(plan.needs_epoch);
  out->set_needs_step(plan.needs_step);
}

void ToProto(const compression::AlgorithmInfo& algorithm, v1::Algorithm* out) {
  out->set_name(algorithm.name);
  out->set_kind(static_cast<v1::AlgorithmKind>(algorithm.kind));
  out->set_summary(algorithm.summary);
  out->set_reference(algorithm.reference);
  out->set_source(algorithm.source);
  for (const compression::OptionSpec& spec : algorithm.options) {
    v1::AlgorithmOption* option = out->add_options();
    option->set_name(spec.name);
    const absl::string_view type = compression::OptionTypeName(spec.type);
    option->set_type(type.data(), type.size());
    option->set_required(spec.default_value.is_null());
    if (!option->required()) ToProto(spec.default_value, option->mutable_default_value());
    option->set_range(compression::OptionRange(spec));
    option->set_description(spec.description);
    option->set_only_with(compression::OnlyWith(spec));
    option->mutable_aliases()->Add(spec.aliases.begin(), spec.aliases.end());
  }
  ToProto(algorithm.example, out->mutable_example());
}

void ToProto(absl::Duration duration, google::protobuf::Duration* out) {
  const int64_t seconds = absl::IDivDuration(duration, absl::Seconds(1), &duration);
  out->set_seconds(seconds);
  out->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(duration)));
}

void ToProto(absl::Time time, google::protobuf::Timestamp* out) {
  const int64_t seconds = absl::ToUnixSeconds(time);  // rounds down
  out->set_seconds(seconds);
  out->set_nanos(
      static_cast<int32_t>(absl::ToInt64Nanoseconds(time - absl::FromUnixSeconds(seconds))));
}

}  // namespace nni_compression::server
