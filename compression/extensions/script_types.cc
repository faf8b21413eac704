#include "compression/extensions/script_types.h"

#include <ATen/core/jit_type.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {
namespace {

using c10::IValue;
using nlohmann::json;

struct Field {
  std::string name;
  c10::TypePtr type;
};

absl::StatusOr<std::vector<Field>> FieldsOf(const c10::TypePtr& type) {
  const auto tuple = type->cast<c10::TupleType>();
  if (tuple == nullptr || tuple->schema() == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("has the type ", type->annotation_str(), "; it must be a NamedTuple"));
  }
  std::vector<Field> fields;
  for (const c10::Argument& argument : tuple->schema()->arguments()) {
    fields.push_back({argument.name(), argument.type()});
  }
  return fields;
}

std::optional<OptionType> OptionTypeOf(const c10::Type& type) {
  static const auto* const types = new std::vector<std::pair<c10::TypePtr, OptionType>>{
      {c10::FloatType::get(), OptionType::kNumber},
      {c10::IntType::get(), OptionType::kInteger},
      {c10::BoolType::get(), OptionType::kBoolean},
      {c10::StringType::get(), OptionType::kString},
      {c10::ListType::create(c10::StringType::get()), OptionType::kStringList},
      {c10::ListType::create(c10::FloatType::get()), OptionType::kNumberList}};
  for (const auto& [known, option] : *types) {
    if (*known == type) return option;
  }
  return std::nullopt;
}

// Throws json::exception for a detail of another type.
OptionSpec ReadSpec(const std::string& name, OptionType type, const json& details) {
  OptionSpec spec;
  spec.name = name;
  spec.type = type;
  spec.default_value = details.value("default", json());
  spec.minimum = details.value("minimum", -kUnbounded);
  spec.maximum = details.value("maximum", kUnbounded);
  spec.choices = details.value("choices", std::vector<std::string>());
  spec.description = details.value("description", "");
  return spec;
}

IValue ToIValue(const Options& options, const std::string& name, const c10::Type& type) {
  switch (*OptionTypeOf(type)) {
    case OptionType::kNumber:
      return options.Number(name);
    case OptionType::kInteger:
      return options.Integer(name);
    case OptionType::kBoolean:
      return options.Boolean(name);
    case OptionType::kString:
      return options.String(name);
    case OptionType::kStringList:
      return options.StringList(name);
    default:
      return options.NumberList(name);
  }
}

template <typename ValueOf>
IValue MakeTuple(const c10::TypePtr& type, const ValueOf& value_of) {
  const auto fields = FieldsOf(type);
  std::vector<IValue> values;
  for (const Field& field : *fields) values.push_back(value_of(field));
  return c10::ivalue::Tuple::createNamed(std::move(values), type);
}

std::optional<IValue> FieldOfLayer(const Layer& layer, const std::string& name) {
  if (name == "name") return layer.name;
  if (name == "op_type") return layer.op_type;
  if (name == "dtype") {
    const absl::string_view dtype = DataTypeName(layer.dtype);
    return std::string(dtype.data(), dtype.size());
  }
  if (name == "shape") return layer.shape;
  if (name == "channel_axis") return int64_t{layer.channel_axis};
  return std::nullopt;
}

absl::Status CheckStatisticType(const StatisticInfo& info, const c10::TypePtr& type) {
  const auto fields = FieldsOf(type);
  if (!fields.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(info.name, " ", fields.status().message()));
  }
  for (const Field& field : *fields) {
    const bool is_number = field.name == "count" || field.name == "exponent";
    if (field.name == "values" && *field.type == *c10::TensorType::get()) continue;
    if (is_number && *field.type == *c10::IntType::get()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(info.name, " has the field ", field.name, ": ", field.type->annotation_str(),
                     "; a statistic has values: Tensor, count: int, exponent: int"));
  }
  return absl::OkStatus();
}

IValue ToTuple(const c10::TypePtr& type, const StatisticInfo& info, const Statistics& statistics) {
  auto total = std::make_shared<StatisticTotal>();
  std::vector<int64_t> shape = {0};
  if (const auto found = statistics.find(info.kind); found != statistics.end()) {
    *total = Merge(info, *found->second);
    shape = found->second->shape;
  }
  return MakeTuple(type, [&](const Field& field) -> IValue {
    if (field.name == "count") return total->count;
    if (field.name == "exponent") return int64_t{total->exponent};
    // The tensor owns the total.
    return at::from_blob(
        total->values.data(), shape, [total](void*) {}, at::TensorOptions().dtype(at::kDouble));
  });
}

}  // namespace

absl::StatusOr<std::vector<OptionSpec>> ReadOptionTypes(const c10::TypePtr& type,
                                                        const json& details) {
  auto fields = FieldsOf(type);
  if (!fields.ok()) return fields.status();
  std::vector<OptionSpec> specs;
  for (const Field& field : *fields) {
    const auto option = OptionTypeOf(*field.type);
    if (!option) {
      return absl::InvalidArgumentError(
          absl::StrCat("has the field ", field.name, " of type ", field.type->annotation_str(),
                       "; it must be float, int, bool, str, List[str] or List[float]"));
    }
    specs.push_back(ReadSpec(field.name, *option, details.value(field.name, json::object())));
  }
  for (const auto& entry : details.items()) {
    const auto same = [&](const Field& field) { return field.name == entry.key(); };
    if (std::none_of(fields->begin(), fields->end(), same)) {
      return absl::InvalidArgumentError(absl::StrCat("has no field ", Quoted(entry.key())));
    }
  }
  return specs;
}

IValue ToTuple(const c10::TypePtr& type, const Options& options) {
  return MakeTuple(type,
                   [&](const Field& field) { return ToIValue(options, field.name, *field.type); });
}

IValue ToTuple(const c10::TypePtr& type, const Layer& layer, const Statistics& statistics) {
  return MakeTuple(type, [&](const Field& field) {
    const StatisticInfo* const info = FindStatistic(field.name);
    return info == nullptr ? *FieldOfLayer(layer, field.name)
                           : ToTuple(field.type, *info, statistics);
  });
}

absl::StatusOr<std::vector<const StatisticInfo*>> ReadLayerType(const c10::TypePtr& type) {
  const auto fields = FieldsOf(type);
  if (!fields.ok()) return fields.status();
  std::vector<const StatisticInfo*> statistics;
  for (const Field& field : *fields) {
    if (const StatisticInfo* const info = FindStatistic(field.name)) {
      if (auto status = CheckStatisticType(*info, field.type); !status.ok()) return status;
      statistics.push_back(info);
      continue;
    }
    const auto value = FieldOfLayer(Layer(), field.name);
    if (value && *value->type() == *field.type) continue;
    std::vector<std::string> names;
    for (const StatisticInfo& info : AllStatistics()) names.emplace_back(info.name);
    return absl::InvalidArgumentError(absl::StrCat(
        "has the field ", field.name, ": ", field.type->annotation_str(),
        "; a layer has name: str, op_type: str, dtype: str, shape: List[int], channel_axis: int, "
        "and the statistics ",
        absl::StrJoin(names, ", "), Suggestion(field.name, names)));
  }
  return statistics;
}

}  // namespace nni_compression::compression
