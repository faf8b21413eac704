#include "compression/binding.h"

#include "absl/strings/str_cat.h"
#include "compression/suggest.h"

namespace nni_compression::compression {
namespace {

constexpr size_t kMaxLayers = 32768;
constexpr size_t kMaxNames = 4 * kMaxLayers;
constexpr size_t kMaxTypeBytes = 256;

// Length of the UTF-8 sequence that `text` begins with; 0: it begins with none.
size_t SequenceLength(absl::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xc2 && lead < 0xe0   ? 2
                        : lead >= 0xe0 && lead < 0xf0 ? 3
                        : lead >= 0xf0 && lead < 0xf5 ? 4
                                                      : 0;
  if (length == 0 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  const uint8_t second = byte(1);
  const bool overlong = (lead == 0xe0 && second < 0xa0) || (lead == 0xf0 && second < 0x90);
  const bool surrogate = lead == 0xed && second >= 0xa0;
  const bool beyond = lead == 0xf4 && second >= 0x90;
  return overlong || surrogate || beyond ? 0 : length;
}

bool IsControl(absl::string_view sequence) {
  const auto first = static_cast<uint8_t>(sequence[0]);
  if (sequence.size() == 1) return first < 0x20 || first == 0x7f;
  return first == 0xc2 && static_cast<uint8_t>(sequence[1]) < 0xa0;
}

absl::Status CheckLayer(Layer& layer, const std::string& path) {
  if (auto s = CheckName(layer.name, kMaxLayerNameBytes, path + ".name"); !s.ok()) return s;
  if (auto s = CheckName(layer.op_type, kMaxTypeBytes, path + ".op_type"); !s.ok()) return s;
  for (size_t j = 0; j < layer.aliases.size(); ++j) {
    auto s =
        CheckName(layer.aliases[j], kMaxLayerNameBytes, absl::StrCat(path, ".aliases[", j, "]"));
    if (!s.ok()) return s;
  }
  if (!IsWeightType(layer.dtype)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ".dtype is ", DataTypeName(layer.dtype),
                     "; it must be one of float32, float16, bfloat16, float64"));
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

absl::Status CheckName(absl::string_view name, size_t max_bytes, absl::string_view path) {
  if (name.empty() || name.size() > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " has ", name.size(), " bytes; it must have 1 to ", max_bytes));
  }
  for (size_t i = 0; i < name.size();) {
    const size_t length = SequenceLength(name.substr(i));
    if (length == 0 || IsControl(name.substr(i, length))) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, " is ", Quoted(name), ", whose byte ", i,
                       length == 0 ? " is not valid UTF-8" : " is a control character",
                       "; it must be UTF-8 without control characters"));
    }
    i += length;
  }
  return absl::OkStatus();
}

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
