#include "client/cli/coverage.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"

namespace nni_compression::cli {
namespace {

constexpr size_t kNamed = 5;  // weights that a line names

bool IsParameterType(absl::string_view dtype) {
  return dtype[0] == 'F' || dtype == "BF16" || dtype == "I8" || dtype == "U8" || dtype == "I32";
}

int64_t ElementsOf(const FileTensor& tensor) {
  return (tensor.end - tensor.begin) * 8 / ElementBits(tensor.dtype);
}

// The last part of a layer's name: "embed_tokens" of "model.embed_tokens.weight".
absl::string_view LastPart(absl::string_view name) {
  name = absl::StripSuffix(name, kWeightSuffix);
  const size_t dot = name.rfind('.');
  return dot == absl::string_view::npos ? name : name.substr(dot + 1);
}

// Embeddings and output heads, by the names that they have in models of transformers.
bool IsEmbedding(const FileTensor& tensor) {
  if (tensor.shape.size() != 2 || !absl::EndsWith(tensor.name, kWeightSuffix)) return false;
  const absl::string_view part = LastPart(tensor.name);
  return absl::StrContains(part, "embed") || part == "wte" || part == "wpe" || part == "shared" ||
         part == "lm_head";
}

std::map<std::string, const v1::LayerPlan*> ByName(const v1::Plan& plan) {
  std::map<std::string, const v1::LayerPlan*> layers;
  for (const v1::LayerPlan& layer : plan.layers()) layers.emplace(layer.name(), &layer);
  return layers;
}

// Whether a rule chooses layers by their names, and so has the ones that its author means.
bool HasNames(const nlohmann::json& rule) {
  return rule.contains("op_names") || rule.contains("op_names_re");
}

std::string FirstOf(std::vector<std::string> names) {
  const size_t more = names.size() > kNamed ? names.size() - kNamed : 0;
  names.resize(names.size() - more);
  return absl::StrCat(absl::StrJoin(names, ", "),
                      more > 0 ? absl::StrCat(" and ", more, " more") : "");
}

}  // namespace

Coverage CoverageOf(const SafetensorsHeader& header, const v1::Plan& plan) {
  const auto layers = ByName(plan);
  Coverage coverage;
  std::vector<const FileTensor*> others;
  for (const FileTensor& tensor : header.tensors) {
    if (!IsParameterType(tensor.dtype)) continue;
    coverage.parameters += ElementsOf(tensor);
    const auto layer = layers.find(tensor.name);
    if (layer != layers.end() && layer->second->compressed()) {
      ++coverage.compressed;
      coverage.compressed_parameters += ElementsOf(tensor);
    } else if (tensor.shape.size() > 1) {
      others.push_back(&tensor);
    }
  }
  coverage.weights = coverage.compressed + static_cast<int64_t>(others.size());
  std::stable_sort(others.begin(), others.end(), [](const FileTensor* a, const FileTensor* b) {
    return ElementsOf(*a) > ElementsOf(*b);
  });
  for (const FileTensor* tensor : others) {
    const auto layer = layers.find(tensor->name);
    const bool excluded = layer != layers.end() && layer->second->has_rule();
    (excluded ? coverage.excluded : coverage.left_out).push_back(tensor->name);
  }
  return coverage;
}

nlohmann::json ToJson(const Coverage& coverage) {
  return {{"compressed", coverage.compressed},
          {"weights", coverage.weights},
          {"compressed_parameters", coverage.compressed_parameters},
          {"parameters", coverage.parameters},
          {"left_out", coverage.left_out},
          {"excluded", coverage.excluded}};
}

std::string ToText(const Coverage& coverage) {
  const double share = coverage.parameters == 0
                           ? 0
                           : static_cast<double>(coverage.compressed_parameters) /
                                 static_cast<double>(coverage.parameters);
  const double percent = std::floor(1000 * share) / 10;  // rounded down: 100 only if all are
  std::string line = absl::StrCat(coverage.compressed, " of ", coverage.weights, " weights, ",
                                  percent, " % of the parameters, are compressed");
  if (!coverage.left_out.empty()) {
    absl::StrAppend(&line, "; not covered: ", FirstOf(coverage.left_out));
  }
  if (!coverage.excluded.empty()) {
    absl::StrAppend(&line, "; excluded: ", coverage.excluded.size());
  }
  return line;
}

std::optional<std::string> EmbeddingsWarning(const SafetensorsHeader& header, const v1::Plan& plan,
                                             const nlohmann::json& config_list) {
  const auto layers = ByName(plan);
  std::vector<std::string> names;
  for (const FileTensor& tensor : header.tensors) {
    const auto layer = layers.find(tensor.name);
    if (!IsEmbedding(tensor) || layer == layers.end() || !layer->second->compressed()) continue;
    const auto rule = static_cast<size_t>(layer->second->rule());
    if (rule < config_list.size() && HasNames(config_list[rule])) continue;
    names.push_back(tensor.name);
  }
  if (names.empty()) return std::nullopt;
  const nlohmann::json rule = {{"exclude", true}, {"op_names", names}};
  return absl::StrCat(
      "embeddings and output heads are compressed, too, which language models "
      "often do not tolerate: to leave them out, add the rule ",
      rule.dump(), " at the end of the config_list");
}

std::vector<std::string> TransposedWeights(const SafetensorsHeader& header, const v1::Plan& plan,
                                           const std::string& model_type) {
  static constexpr std::array<absl::string_view, 5> kModels = {"gpt2", "openai-gpt", "imagegpt",
                                                               "decision_transformer", "clvp"};
  static const auto& kLayers =
      *new std::set<absl::string_view>{"c_attn", "q_attn", "c_proj", "c_fc"};
  std::vector<std::string> names;
  if (std::find(kModels.begin(), kModels.end(), model_type) == kModels.end()) return names;
  const auto layers = ByName(plan);
  for (const FileTensor& tensor : header.tensors) {
    const auto layer = layers.find(tensor.name);
    if (layer == layers.end() || !layer->second->compressed()) continue;
    if (tensor.shape.size() == 2 && kLayers.count(LastPart(tensor.name)) != 0) {
      names.push_back(tensor.name);
    }
  }
  return names;
}

}  // namespace nni_compression::cli
