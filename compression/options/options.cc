#include "compression/options/options.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {

using nlohmann::json;

namespace {

const std::vector<std::string>& PerTypeKeys() {
  static const auto* keys = new std::vector<std::string>{"weight", "output", "input"};
  return *keys;
}

absl::Status Bad(absl::string_view path, const json& value, absl::string_view must_be) {
  return absl::InvalidArgumentError(
      absl::StrCat(path, " is ", Shown(value), "; it must be ", must_be));
}

absl::StatusOr<json> ReadNumber(const OptionSpec& spec, const json& value, absl::string_view path) {
  if (!value.is_number()) {
    return Bad(path, value, absl::StrCat("a number in ", OptionRange(spec)));
  }
  const auto number = value.get<double>();
  if (!(number >= spec.minimum && number <= spec.maximum)) {
    return Bad(path, value, absl::StrCat("in ", OptionRange(spec)));
  }
  return json(number);
}

absl::StatusOr<json> ReadInteger(const OptionSpec& spec, const json& value,
                                 absl::string_view path) {
  // JSON from a protobuf Struct has doubles only.
  if (!value.is_number() || value.get<double>() != std::trunc(value.get<double>())) {
    return Bad(path, value, absl::StrCat("an integer in ", OptionRange(spec)));
  }
  const auto number = value.get<double>();
  if (!(number >= spec.minimum && number <= spec.maximum)) {
    return Bad(path, value, absl::StrCat("in ", OptionRange(spec)));
  }
  return json(static_cast<int64_t>(number));
}

// `read_one`: ReadInteger or ReadString.
template <typename ReadOne>
absl::StatusOr<json> ReadPerType(const OptionSpec& spec, const json& value, absl::string_view path,
                                 const ReadOne& read_one) {
  if (!value.is_object()) return read_one(spec, value, path);
  json result = json::object();
  for (const auto& [type, entry] : value.items()) {
    const std::string entry_path = absl::StrCat(path, ".", type);
    const auto& keys = PerTypeKeys();
    if (std::find(keys.begin(), keys.end(), type) == keys.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, " has the unknown key ", Quoted(type), "; it must be one of ",
                       absl::StrJoin(keys, ", "), Suggestion(type, keys)));
    }
    auto read = read_one(spec, entry, entry_path);
    if (!read.ok()) return read.status();
    result[type] = *read;
  }
  return result;
}

absl::Status CheckChoice(const OptionSpec& spec, const std::string& value, absl::string_view path) {
  const auto& choices = spec.choices;
  if (choices.empty() || std::find(choices.begin(), choices.end(), value) != choices.end()) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(path, " is ", Quoted(value), "; it must be ",
                                                 OptionRange(spec), Suggestion(value, choices)));
}

absl::StatusOr<json> ReadString(const OptionSpec& spec, const json& value, absl::string_view path) {
  if (!value.is_string()) return Bad(path, value, absl::StrCat("a string, ", OptionRange(spec)));
  const auto& text = value.get_ref<const std::string&>();
  if (auto status = CheckChoice(spec, text, path); !status.ok()) return status;
  return value;
}

absl::StatusOr<json> ReadStringList(const OptionSpec& spec, const json& value,
                                    absl::string_view path) {
  auto strings = ReadStrings(value, path);
  if (!strings.ok()) return strings.status();
  for (size_t i = 0; i < strings->size(); ++i) {
    auto status = CheckChoice(spec, (*strings)[i], absl::StrCat(path, "[", i, "]"));
    if (!status.ok()) return status;
  }
  return json(*strings);
}

absl::StatusOr<json> ReadNumberList(const OptionSpec& spec, const json& value,
                                    absl::string_view path) {
  if (!value.is_array())
    return Bad(path, value, absl::StrCat("a list of numbers in ", OptionRange(spec)));
  json numbers = json::array();
  for (size_t i = 0; i < value.size(); ++i) {
    auto number = ReadNumber(spec, value[i], absl::StrCat(path, "[", i, "]"));
    if (!number.ok()) return number.status();
    numbers.push_back(*std::move(number));
  }
  return numbers;
}

absl::StatusOr<json> ReadOption(const OptionSpec& spec, const json& value, absl::string_view path) {
  switch (spec.type) {
    case OptionType::kNumber:
      return ReadNumber(spec, value, path);
    case OptionType::kInteger:
      return ReadInteger(spec, value, path);
    case OptionType::kBoolean:
      if (!value.is_boolean()) return Bad(path, value, "true or false");
      return value;
    case OptionType::kString:
      return ReadString(spec, value, path);
    case OptionType::kStringList:
      return ReadStringList(spec, value, path);
    case OptionType::kObject:
      if (!value.is_object()) return Bad(path, value, "an object");
      return value;
    case OptionType::kNumberList:
      return ReadNumberList(spec, value, path);
    case OptionType::kIntegerPerType:
      return ReadPerType(spec, value, path, ReadInteger);
    case OptionType::kStringPerType:
      return ReadPerType(spec, value, path, ReadString);
  }
  return absl::InternalError("unknown type of option");
}

const OptionSpec* FindSpec(const std::vector<OptionSpec>& specs, const std::string& key) {
  for (const OptionSpec& spec : specs) {
    if (spec.name == key || std::count(spec.aliases.begin(), spec.aliases.end(), key) > 0) {
      return &spec;
    }
  }
  return nullptr;
}

// What a key of NNI 2 or 3 is called here, where `known` has the option; empty for other keys.
std::string NniHint(const std::string& key, const std::vector<std::string>& known) {
  // Each begins with the name of an option.
  static const auto* const names =
      new std::map<std::string, std::string>{{"global_group_id", "scope \"global\""},
                                             {"max_sparse_ratio", "max_sparsity"},
                                             {"max_sparsity_per_layer", "max_sparsity"},
                                             {"min_sparse_ratio", "min_sparsity"},
                                             {"op_partial_names", "op_names_re"},
                                             {"sparse_ratio", "sparsity"},
                                             {"sparsity_per_layer", "sparsity"},
                                             {"total_iteration", "end_epoch of a schedule"},
                                             {"total_sparsity", "sparsity with scope \"global\""}};
  const auto found = names->find(key);
  if (found == names->end()) return "";
  const std::string option = found->second.substr(0, found->second.find(' '));
  if (std::count(known.begin(), known.end(), option) == 0) return "";
  return absl::StrCat("; NNI's ", key, " is ", found->second, " here");
}

absl::Status UnknownKey(const std::vector<OptionSpec>& specs,
                        const std::vector<std::string>& common_keys, const std::string& key,
                        absl::string_view path) {
  std::vector<std::string> known = common_keys;
  for (const OptionSpec& spec : specs) known.push_back(spec.name);
  const std::string names = absl::StrJoin(known, ", ");
  for (const OptionSpec& spec : specs) {
    known.insert(known.end(), spec.aliases.begin(), spec.aliases.end());
  }
  const std::string hint = NniHint(key, known);
  return absl::InvalidArgumentError(absl::StrCat(path, " has the unknown key ", Quoted(key),
                                                 "; it must be one of ", names,
                                                 hint.empty() ? Suggestion(key, known) : hint));
}

// The options that `rule` gives, by their names.
absl::StatusOr<json> ReadGiven(const std::vector<OptionSpec>& specs,
                               const std::vector<std::string>& common_keys, const json& rule,
                               absl::string_view path) {
  if (!rule.is_object()) return Bad(path, rule, "an object");
  json values = json::object();
  for (const auto& [key, value] : rule.items()) {
    if (std::count(common_keys.begin(), common_keys.end(), key) > 0) continue;
    const OptionSpec* spec = FindSpec(specs, key);
    if (spec == nullptr) return UnknownKey(specs, common_keys, key, path);
    if (values.contains(spec->name)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ".", spec->name, " is set twice, under different names"));
    }
    auto read = ReadOption(*spec, value, absl::StrCat(path, ".", key));
    if (!read.ok()) return read.status();
    values[spec->name] = *std::move(read);
  }
  return values;
}

// Sets the defaults that the choices in `values` give other options. Of an option that is given per
// type, those for the other types.
void AddPresets(const std::vector<OptionSpec>& specs, json& values) {
  for (const OptionSpec& spec : specs) {
    const auto choice = values.find(spec.name);
    if (choice == values.end() || !choice->is_string()) continue;
    const auto found = spec.presets.find(choice->get<std::string>());
    if (found == spec.presets.end()) continue;
    for (const auto& [name, preset] : found->second.items()) {
      const auto given = values.find(name);
      if (given == values.end()) {
        values[name] = preset;
      } else if (given->is_object() && preset.is_object()) {
        given->insert(preset.begin(), preset.end());  // replaces nothing
      }
    }
  }
}

// Whether the option exists with these values, which have those of the options before it.
bool Exists(const OptionSpec& spec, const json& values) {
  return std::all_of(spec.only_with.begin(), spec.only_with.end(), [&values](const auto& entry) {
    const auto value = values.find(entry.first);
    return value != values.end() && value->is_string() &&
           std::count(entry.second.begin(), entry.second.end(),
                      value->template get<std::string>()) > 0;
  });
}

std::string Bound(double value) { return value >= kUnbounded ? "inf" : Shown(json(value)); }

}  // namespace

const std::vector<std::string>& CommonKeys() {
  static const auto* keys =
      new std::vector<std::string>{"op_types", "op_names", "op_names_re", "exclude"};
  return *keys;
}

std::string OptionRange(const OptionSpec& spec) {
  switch (spec.type) {
    case OptionType::kNumber:
    case OptionType::kInteger:
    case OptionType::kNumberList:
    case OptionType::kIntegerPerType:
      return absl::StrCat("[", Bound(spec.minimum), ", ", Bound(spec.maximum),
                          spec.maximum >= kUnbounded ? ")" : "]");
    case OptionType::kBoolean:
      return "true or false";
    case OptionType::kObject:
      return "any";
    case OptionType::kString:
    case OptionType::kStringList:
    case OptionType::kStringPerType:
      return spec.choices.empty() ? "any"
                                  : absl::StrCat("one of ", absl::StrJoin(spec.choices, ", "));
  }
  return "";
}

std::string OnlyWith(const OptionSpec& spec) {
  std::vector<std::string> conditions;
  conditions.reserve(spec.only_with.size());
  for (const auto& [name, choices] : spec.only_with) {
    conditions.push_back(absl::StrCat(name, " ", absl::StrJoin(choices, ", ")));
  }
  return conditions.empty() ? "" : absl::StrCat("only with ", absl::StrJoin(conditions, " and "));
}

absl::string_view OptionTypeName(OptionType type) {
  switch (type) {
    case OptionType::kNumber:
      return "number";
    case OptionType::kInteger:
      return "integer";
    case OptionType::kBoolean:
      return "boolean";
    case OptionType::kString:
      return "string";
    case OptionType::kStringList:
      return "list of strings";
    case OptionType::kObject:
      return "object";
    case OptionType::kNumberList:
      return "list of numbers";
    case OptionType::kIntegerPerType:
      return "integer or per-type object";
    case OptionType::kStringPerType:
      return "string or per-type object";
  }
  return "";
}

absl::StatusOr<std::vector<std::string>> ReadStrings(const json& value, absl::string_view path) {
  if (value.is_string()) return std::vector<std::string>{value.get<std::string>()};
  if (!value.is_array()) return Bad(path, value, "a list of strings");
  if (value.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is empty; leave it out, or name at least one"));
  }
  std::vector<std::string> strings;
  for (size_t i = 0; i < value.size(); ++i) {
    if (!value[i].is_string()) return Bad(absl::StrCat(path, "[", i, "]"), value[i], "a string");
    strings.push_back(value[i].get<std::string>());
  }
  return strings;
}

Options::Options(nlohmann::json values, std::string path)
    : values_(std::move(values)), path_(std::move(path)) {}

absl::StatusOr<Options> Options::Parse(const std::vector<OptionSpec>& specs,
                                       const std::vector<std::string>& common_keys,
                                       const nlohmann::json& rule, absl::string_view path) {
  auto values = ReadGiven(specs, common_keys, rule, path);
  if (!values.ok()) return values.status();
  AddPresets(specs, *values);
  std::vector<const OptionSpec*> missing;
  for (const OptionSpec& spec : specs) {
    const bool exists = Exists(spec, *values);
    if (values->contains(spec.name)) {
      if (exists) continue;
      return absl::InvalidArgumentError(absl::StrCat(path, ".", spec.name, " is ",
                                                     Shown((*values)[spec.name]),
                                                     "; it may be given ", OnlyWith(spec)));
    }
    if (!exists) continue;
    if (spec.default_value.is_null()) {
      missing.push_back(&spec);
    } else {
      (*values)[spec.name] = spec.default_value;
    }
  }
  if (!missing.empty()) {
    const OptionSpec& spec = *missing[0];
    return absl::InvalidArgumentError(absl::StrCat(
        path, ".", spec.name, " is missing; it must be a",
        spec.type == OptionType::kInteger ? "n " : " ", OptionTypeName(spec.type), " in ",
        OptionRange(spec), ". A rule does not inherit options from earlier ones"));
  }
  return Options(*std::move(values), std::string(path));
}

absl::Status Options::Check(const std::vector<OptionSpec>& specs,
                            const std::vector<std::string>& common_keys, const nlohmann::json& rule,
                            absl::string_view path) {
  return ReadGiven(specs, common_keys, rule, path).status();
}

double Options::Number(absl::string_view name) const {
  return values_.at(std::string(name)).get<double>();
}

int64_t Options::Integer(absl::string_view name) const {
  return values_.at(std::string(name)).get<int64_t>();
}

bool Options::Boolean(absl::string_view name) const {
  return values_.at(std::string(name)).get<bool>();
}

const std::string& Options::String(absl::string_view name) const {
  return values_.at(std::string(name)).get_ref<const std::string&>();
}

std::vector<std::string> Options::StringList(absl::string_view name) const {
  return values_.at(std::string(name)).get<std::vector<std::string>>();
}

std::vector<double> Options::NumberList(absl::string_view name) const {
  return values_.at(std::string(name)).get<std::vector<double>>();
}

int64_t Options::IntegerFor(absl::string_view name, absl::string_view type) const {
  return ValueFor(name, type).get<int64_t>();
}

const std::string& Options::StringFor(absl::string_view name, absl::string_view type) const {
  return ValueFor(name, type).get_ref<const std::string&>();
}

const nlohmann::json& Options::ValueFor(absl::string_view name, absl::string_view type) const {
  const nlohmann::json& value = values_.at(std::string(name));
  return value.is_object() ? value.at(std::string(type)) : value;
}

}  // namespace nni_compression::compression
