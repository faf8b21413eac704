#include "client/cli/checkpoints/index.h"

#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/cli/checkpoints/safetensors.h"
#include "client/cli/strict_json.h"
#include "client/cpp/export.h"

namespace nni_compression::cli {
namespace {

constexpr int kMaxIndexDepth = 16;
constexpr char kWeightMap[] = "weight_map";
constexpr char kIndexMetadata[] = "metadata";

}  // namespace

std::vector<std::string> CheckpointIndex::Files() const {
  std::set<std::string> files;
  for (const auto& [tensor, file] : weight_map) files.insert(file);
  return {files.begin(), files.end()};
}

absl::StatusOr<CheckpointIndex> ParseIndex(absl::string_view text) {
  auto json = ParseStrictJson(text, kMaxIndexDepth);
  if (!json.ok()) return json.status();
  if (json->is_array()) {
    return absl::InvalidArgumentError(
        "it is a list in JSON, not a checkpoint or its index; a config_list belongs to --config");
  }
  const auto map = json->is_object() ? json->find(kWeightMap) : json->end();
  if (map == json->end() || !map->is_object() || map->empty()) {
    return absl::InvalidArgumentError(
        "it is JSON, but not the index of a checkpoint: it has no object weight_map with the file "
        "of each tensor");
  }
  CheckpointIndex index;
  for (const auto& [tensor, file] : map->items()) {
    const bool plain = file.is_string() &&
                       internal::CheckFileName(file.get_ref<const std::string&>()).ok() &&
                       absl::EndsWith(file.get_ref<const std::string&>(), kSafetensorsSuffix);
    if (!plain) {
      return absl::InvalidArgumentError(
          absl::StrCat("weight_map[", nlohmann::json(tensor).dump(), "] is ", file.dump(),
                       "; it must be the name of a .safetensors file in the index's folder"));
    }
    index.weight_map.emplace(tensor, file.get<std::string>());
  }
  const auto metadata = json->find(kIndexMetadata);
  if (metadata != json->end() && metadata->is_object()) index.metadata = std::move(*metadata);
  return index;
}

std::string SerializeIndex(const CheckpointIndex& index) {
  const nlohmann::json json = {{kIndexMetadata, index.metadata}, {kWeightMap, index.weight_map}};
  return absl::StrCat(json.dump(2), "\n");
}

}  // namespace nni_compression::cli
