#include "compression/session/layer_index.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "compression/messages/names.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {
namespace {

constexpr size_t kMaxLayers = 32768;
constexpr size_t kMaxNames = 4 * kMaxLayers;
constexpr size_t kMaxTypeBytes = 256;
constexpr size_t kMaxTypeBases = 16;

std::string WeightTypes() {
  std::vector<absl::string_view> names;
  for (const DataType type : DataTypes()) {
    if (IsWeightType(type)) names.push_back(DataTypeName(type));
  }
  return absl::StrJoin(names, ", ");
}

absl::Status CheckLayer(Layer& layer, const std::string& path) {
  if (auto s = CheckName(layer.name, kMaxLayerNameBytes, path + ".name"); !s.ok()) return s;
  if (auto s = CheckName(layer.op_type, kMaxTypeBytes, path + ".op_type"); !s.ok()) return s;
  if (layer.op_type_bases.size() > kMaxTypeBases) {
    return absl::InvalidArgumentError(absl::StrCat(path, ".op_type_bases has ",
                                                   layer.op_type_bases.size(),
                                                   " types; it may have at most ", kMaxTypeBases));
  }
  for (size_t j = 0; j < layer.op_type_bases.size(); ++j) {
    auto s = CheckName(layer.op_type_bases[j], kMaxTypeBytes,
                       absl::StrCat(path, ".op_type_bases[", j, "]"));
    if (!s.ok()) return s;
  }
  for (size_t j = 0; j < layer.aliases.size(); ++j) {
    auto s =
        CheckName(layer.aliases[j], kMaxLayerNameBytes, absl::StrCat(path, ".aliases[", j, "]"));
    if (!s.ok()) return s;
  }
  if (!IsWeightType(layer.dtype)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ".dtype is ", DataTypeName(layer.dtype),
                                                   "; it must be one of ", WeightTypes()));
  }
  const auto elements = CountElements(layer.shape);
  if (!elements.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ".", elements.status().message()));
  }
  layer.elements = *elements;
  const auto rank = static_cast<int64_t>(layer.shape.size());
  if (layer.channel_axis < 0 || layer.channel_axis >= rank) {
    return absl::InvalidArgumentError(absl::StrCat(path, ".channel_axis is ", layer.channel_axis,
                                                   "; it must be in [0, ", rank - 1, "]"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<absl::flat_hash_map<std::string, int>> IndexLayers(std::vector<Layer>& layers) {
  if (layers.empty() || layers.size() > kMaxLayers) {
    return absl::InvalidArgumentError(
        absl::StrCat("layers has ", layers.size(), " entries; it must have 1 to ", kMaxLayers));
  }
  absl::flat_hash_map<std::string, int> index;
  for (size_t i = 0; i < layers.size(); ++i) {
    const std::string path = absl::StrCat("layers[", i, "]");
    if (auto status = CheckLayer(layers[i], path); !status.ok()) return status;
    const auto add = [&](const std::string& name, absl::string_view field) -> absl::Status {
      const auto [other, fresh] = index.try_emplace(name, static_cast<int>(i));
      if (fresh) return absl::OkStatus();
      return absl::InvalidArgumentError(absl::StrCat(path, field, " is ", Quoted(name),
                                                     ", as is a name of layers[", other->second,
                                                     "]; names and aliases must be unique"));
    };
    if (auto status = add(layers[i].name, ".name"); !status.ok()) return status;
    for (size_t j = 0; j < layers[i].aliases.size(); ++j) {
      auto status = add(layers[i].aliases[j], absl::StrCat(".aliases[", j, "]"));
      if (!status.ok()) return status;
    }
    if (index.size() > kMaxNames) {
      return absl::InvalidArgumentError(absl::StrCat(
          "layers have more than ", kMaxNames, " names and aliases; they must have at most that"));
    }
  }
  return index;
}

}  // namespace nni_compression::compression
