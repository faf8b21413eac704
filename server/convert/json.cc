#include "server/convert/json.h"

#include <cmath>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace nni_compression::server {
namespace {

using ::google::protobuf::ListValue;
using ::google::protobuf::Struct;
using ::google::protobuf::Value;
using ::nlohmann::json;

constexpr int kMaxLevels = 16;
constexpr double kExactIntegers = 9007199254740992.0;  // 2^53

absl::StatusOr<json> Convert(const Struct& object, int level, absl::string_view path);

json Number(double value) {
  const bool whole = std::isfinite(value) && std::trunc(value) == value &&
                     std::abs(value) < kExactIntegers && !(value == 0 && std::signbit(value));
  return whole ? json(static_cast<int64_t>(value)) : json(value);
}

absl::StatusOr<json> Convert(const Value& value, int level, absl::string_view path) {
  switch (value.kind_case()) {
    case Value::kNullValue:
      return json(nullptr);
    case Value::kNumberValue:
      return Number(value.number_value());
    case Value::kStringValue:
      return json(value.string_value());
    case Value::kBoolValue:
      return json(value.bool_value());
    case Value::kStructValue:
      return Convert(value.struct_value(), level + 1, path);
    case Value::kListValue: {
      if (level >= kMaxLevels) break;
      json list = json::array();
      for (const Value& element : value.list_value().values()) {
        absl::StatusOr<json> converted = Convert(element, level + 1, path);
        if (!converted.ok()) return converted;
        list.push_back(*std::move(converted));
      }
      return list;
    }
    case Value::KIND_NOT_SET:
      return absl::InvalidArgumentError(absl::StrCat(path, " holds a value without a kind"));
  }
  return absl::InvalidArgumentError(
      absl::StrCat(path, " is nested too deeply; at most ", kMaxLevels, " levels are allowed"));
}

absl::StatusOr<json> Convert(const Struct& object, int level, absl::string_view path) {
  if (level >= kMaxLevels) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is nested too deeply; at most ", kMaxLevels, " levels are allowed"));
  }
  json converted = json::object();
  for (const auto& [key, value] : object.fields()) {
    absl::StatusOr<json> element = Convert(value, level, path);
    if (!element.ok()) return element;
    converted[key] = *std::move(element);
  }
  return converted;
}

}  // namespace

absl::StatusOr<json> ToJson(const Struct& object, absl::string_view path) {
  return Convert(object, 0, path);
}

void ToProto(const json& value, Value* out) {
  switch (value.type()) {
    case json::value_t::boolean:
      out->set_bool_value(value.get<bool>());
      break;
    case json::value_t::number_integer:
    case json::value_t::number_unsigned:
    case json::value_t::number_float:
      out->set_number_value(value.get<double>());
      break;
    case json::value_t::string:
      out->set_string_value(value.get<std::string>());
      break;
    case json::value_t::array:
      out->mutable_list_value();
      for (const json& element : value) ToProto(element, out->mutable_list_value()->add_values());
      break;
    case json::value_t::object:
      ToProto(value, out->mutable_struct_value());
      break;
    case json::value_t::null:
    case json::value_t::binary:
    case json::value_t::discarded:
      out->set_null_value(google::protobuf::NULL_VALUE);
      break;
  }
}

void ToProto(const json& object, Struct* out) {
  for (const auto& [key, value] : object.items()) ToProto(value, &(*out->mutable_fields())[key]);
}

}  // namespace nni_compression::server
