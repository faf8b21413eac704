#include "client/cli/checkpoints/model_config.h"

#include <nlohmann/json.hpp>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "client/cli/strict_json.h"

namespace nni_compression::cli {
namespace {

constexpr int kMaxModelConfigDepth = 64;
constexpr char kQuantization[] = "quantization_config";
constexpr char kSpace[] = " \t\r\n";
constexpr absl::string_view kNull = "null";

// The text with zeros for the numbers that only Python's JSON has.
std::string WithoutNonFinite(absl::string_view text) {
  std::string plain;
  bool in_string = false;
  while (!text.empty()) {
    if (!in_string) {
      for (const absl::string_view word : {"NaN", "Infinity"}) {
        if (absl::ConsumePrefix(&text, word)) plain.push_back('0');
      }
      if (text.empty()) break;
    }
    const size_t length = in_string && text[0] == '\\' && text.size() > 1 ? 2 : 1;
    if (text[0] == '"') in_string = !in_string;
    plain.append(text.data(), length);
    text.remove_prefix(length);
  }
  return plain;
}

// Where the value of a member of the object begins, which has it.
size_t PositionOf(absl::string_view name, absl::string_view object) {
  int depth = 0;
  for (size_t i = 0; i < object.size(); ++i) {
    if (object[i] == '{' || object[i] == '[') ++depth;
    if (object[i] == '}' || object[i] == ']') --depth;
    if (object[i] != '"') continue;
    const size_t begin = i++;
    while (object[i] != '"') i += object[i] == '\\' ? 2 : 1;
    const size_t colon = object.find_first_not_of(kSpace, i + 1);
    if (depth != 1 || object[colon] != ':') continue;
    const absl::string_view key = object.substr(begin, i + 1 - begin);  // may have escapes
    if (nlohmann::json::parse(key.begin(), key.end()) == nlohmann::json(name)) {
      return object.find_first_not_of(kSpace, colon + 1);
    }
  }
  return absl::string_view::npos;
}

std::string Member(const nlohmann::json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

// The first component of a layer's name, with its dot; empty when it has only one.
absl::string_view FirstPart(absl::string_view layer) {
  const size_t dot = layer.find('.');
  return dot == absl::string_view::npos ? "" : layer.substr(0, dot + 1);
}

std::string Escaped(absl::string_view layer) { return absl::StrReplaceAll(layer, {{".", "\\."}}); }

// Lets layers be found in any class that the model is loaded as. A model with a head has the layers
// of its base under a prefix, "model.layers.0" instead of "layers.0", so one part in front may be
// missing, if it is that of all layers, or else be added.
void MatchAnyClass(nlohmann::ordered_json& quantization) {
  const auto groups = quantization.find("config_groups");
  if (groups == quantization.end() || !groups->is_object()) return;
  std::vector<nlohmann::ordered_json*> targets;
  std::set<std::string> prefixes;
  for (auto& [name, group] : groups->items()) {
    if (!group.contains("targets") || !group["targets"].is_array()) continue;
    for (nlohmann::ordered_json& target : group["targets"]) {
      if (!target.is_string()) continue;
      targets.push_back(&target);
      prefixes.emplace(FirstPart(target.get_ref<const std::string&>()));
    }
  }
  prefixes.erase("");  // a head's
  for (nlohmann::ordered_json* target : targets) {
    const auto layer = target->get<std::string>();
    const absl::string_view prefix = FirstPart(layer);
    *target = prefixes.size() == 1 && !prefix.empty()
                  ? absl::StrCat("re:^(", Escaped(prefix), ")?",
                                 Escaped(absl::StripPrefix(layer, prefix)), "$")
                  : absl::StrCat("re:^([^.]+\\.)?", Escaped(layer), "$");
  }
}

}  // namespace

absl::StatusOr<ModelConfig> ModelConfig::Parse(std::string text) {
  const auto json = ParseStrictJson(WithoutNonFinite(text), kMaxModelConfigDepth);
  if (!json.ok()) return json.status();
  if (!json->is_object()) return absl::InvalidArgumentError("it is not an object");
  ModelConfig config;
  config.text_ = std::move(text);
  config.empty_ = json->empty();
  config.model_type_ = Member(*json, "model_type");
  const auto quantization = json->find(kQuantization);
  if (quantization != json->end() && quantization->is_null()) {
    config.null_ = PositionOf(kQuantization, config.text_);
  } else if (quantization != json->end()) {
    config.quant_method_ = quantization->is_object() ? Member(*quantization, "quant_method") : "";
    if (config.quant_method_.empty()) config.quant_method_ = "unknown";
  }
  return config;
}

absl::StatusOr<std::string> ModelConfig::WithQuantization(absl::string_view exported) const {
  if (!quant_method_.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("its ", kQuantization, " says that the model is quantized already, by ",
                     quant_method_, "; compress the model that is not"));
  }
  auto json = nlohmann::ordered_json::parse(exported, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || json.size() != 1 || !json.contains(kQuantization)) {
    return absl::InternalError("the server's config.json has more than quantization_config");
  }
  MatchAnyClass(json[kQuantization]);
  const std::string value = absl::StrReplaceAll(json[kQuantization].dump(2), {{"\n", "\n  "}});
  const absl::string_view text = text_;
  if (null_) {
    return absl::StrCat(text.substr(0, *null_), value, text.substr(*null_ + kNull.size()));
  }
  absl::string_view head = absl::StripTrailingAsciiWhitespace(text);
  head.remove_suffix(1);  // the brace
  return absl::StrCat(absl::StripTrailingAsciiWhitespace(head), empty_ ? "" : ",", "\n  \"",
                      kQuantization, "\": ", value, "\n}\n");
}

}  // namespace nni_compression::cli
