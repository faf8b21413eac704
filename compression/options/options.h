// Options of algorithms: declared once as a table, read once at BindModel.
#ifndef NNI_COMPRESSION_COMPRESSION_OPTIONS_OPTIONS_H_
#define NNI_COMPRESSION_COMPRESSION_OPTIONS_OPTIONS_H_

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace nni_compression::compression {

enum class OptionType {
  kNumber,
  kInteger,
  kBoolean,
  kString,
  kStringList,
  kObject,  // of JSON-like values, which are not checked
  kNumberList,
  // One value, or an object from "weight", "output", "input" to values.
  kIntegerPerType,
  kStringPerType,
};

// No maximum: the largest integer that a double holds exactly.
constexpr double kUnbounded = 9007199254740992.0;

// Reads a list of strings, or one string as a list of one. INVALID_ARGUMENT for anything else and
// for an empty list; `path` is the field's.
absl::StatusOr<std::vector<std::string>> ReadStrings(const nlohmann::json& value,
                                                     absl::string_view path);

// One row of an algorithm's option table; ListAlgorithms and the documentation show it.
struct OptionSpec {
  std::string name;
  OptionType type = OptionType::kNumber;
  nlohmann::json default_value;  // null: required
  double minimum = 0;            // numbers and integers, also in lists: the closed range
  double maximum = kUnbounded;
  std::vector<std::string> choices;  // strings: the values allowed; empty: any
  std::string description;
  std::vector<std::string> aliases;  // older names that are accepted too
  // A choice -> an object of the defaults that it gives other options in place of their own.
  std::map<std::string, nlohmann::json> presets;
  // Options before it in the table -> the choices of them with which it exists. A rule that chooses
  // otherwise must not give it, and its Options lack it. Empty: it always exists.
  std::map<std::string, std::vector<std::string>> only_with;
};

// "only with schedule agp, linear and schedule_unit epoch"; empty for an option that always exists.
std::string OnlyWith(const OptionSpec& spec);

// "[0, 1]", "one of a, b": for messages and documentation.
std::string OptionRange(const OptionSpec& spec);
absl::string_view OptionTypeName(OptionType type);

// The keys of a rule other than the algorithm's options.
const std::vector<std::string>& CommonKeys();

// The options of one rule after validation: every option of the table that exists with the rule's
// choices has a value of its type and in its range. Immutable, hence thread-safe.
class Options {
 public:
  // Reads what `rule` says about the options in `specs`. `path` ("config_list[1]") begins every
  // message. INVALID_ARGUMENT names the field, the value and the allowed range; an unknown key
  // gets a suggestion. Keys in `common_keys` (op_types, ...) belong to the rule and are skipped.
  static absl::StatusOr<Options> Parse(const std::vector<OptionSpec>& specs,
                                       const std::vector<std::string>& common_keys,
                                       const nlohmann::json& rule, absl::string_view path);

  // The same checks, but required options may be missing: for a rule with `exclude`, whose options
  // are not used.
  static absl::Status Check(const std::vector<OptionSpec>& specs,
                            const std::vector<std::string>& common_keys, const nlohmann::json& rule,
                            absl::string_view path);

  bool Has(absl::string_view name) const { return values_.contains(std::string(name)); }

  // The option must exist with that type; anything else is a programming error.
  double Number(absl::string_view name) const;
  int64_t Integer(absl::string_view name) const;
  bool Boolean(absl::string_view name) const;
  const std::string& String(absl::string_view name) const;
  std::vector<std::string> StringList(absl::string_view name) const;
  std::vector<double> NumberList(absl::string_view name) const;
  // An option that is set per type must have the type.
  int64_t IntegerFor(absl::string_view name, absl::string_view type) const;
  const std::string& StringFor(absl::string_view name, absl::string_view type) const;

  const nlohmann::json& json() const { return values_; }  // an object, with defaults
  const std::string& path() const { return path_; }

 private:
  Options(nlohmann::json values, std::string path);

  const nlohmann::json& ValueFor(absl::string_view name, absl::string_view type) const;

  nlohmann::json values_;
  std::string path_;
};

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_OPTIONS_OPTIONS_H_
