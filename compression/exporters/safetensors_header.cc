#include "compression/exporters/safetensors_header.h"

#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compression/messages/names.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {
namespace {

constexpr char kMetadata[] = "__metadata__";

}  // namespace

absl::StatusOr<std::string> SafetensorsHeader(absl::Span<const ExportTensor> tensors,
                                              const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  header[kMetadata] = metadata;
  // Not one ordered_json, whose insertion is a linear search.
  std::map<std::string, nlohmann::ordered_json> entries;
  int64_t offset = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const ExportTensor& tensor = tensors[i];
    const std::string path = absl::StrCat("tensors[", i, "]");
    if (auto s = CheckName(tensor.name, kMaxLayerNameBytes, path + ".name"); !s.ok()) return s;
    const std::string dtype(InfoOf(tensor.dtype).safetensors);
    if (dtype.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ".dtype is ", DataTypeName(tensor.dtype),
                                                     ", which safetensors files cannot hold"));
    }
    const int64_t end = offset + tensor.byte_length;
    const auto [entry, fresh] =
        entries.try_emplace(tensor.name, nlohmann::ordered_json{{"dtype", dtype},
                                                                {"shape", tensor.shape},
                                                                {"data_offsets", {offset, end}}});
    if (!fresh || tensor.name == kMetadata) {
      return absl::InvalidArgumentError(absl::StrCat(path, ".name is ", Quoted(tensor.name),
                                                     "; names must be unique and not ", kMetadata));
    }
    offset = end;
  }
  std::string json = header.dump();
  json.pop_back();
  for (const auto& [name, entry] : entries) {
    absl::StrAppend(&json, ",", nlohmann::json(name).dump(), ":", entry.dump());
  }
  json.push_back('}');
  json.append((8 - json.size() % 8) % 8, ' ');
  const uint64_t length = json.size();
  std::string bytes(reinterpret_cast<const char*>(&length), sizeof length);
  return bytes + json;
}

}  // namespace nni_compression::compression
