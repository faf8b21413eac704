#include "compression/exporters/safetensors_header.h"

#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compression/binding.h"
#include "compression/suggest.h"

namespace nni_compression::compression {
namespace {

constexpr char kMetadata[] = "__metadata__";

// Null: the format has no such type.
const char* FormatName(DataType dtype) {
  switch (dtype) {
    case DataType::kFloat32:
      return "F32";
    case DataType::kFloat16:
      return "F16";
    case DataType::kBFloat16:
      return "BF16";
    case DataType::kFloat64:
      return "F64";
    case DataType::kUInt8:
      return "U8";
    case DataType::kInt8:
      return "I8";
    case DataType::kUInt16:
      return "U16";
    case DataType::kInt16:
      return "I16";
    case DataType::kInt32:
      return "I32";
    case DataType::kInt64:
      return "I64";
    case DataType::kBool:
      return "BOOL";
    case DataType::kBit:
      return nullptr;
  }
  return nullptr;
}

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
    const char* dtype = FormatName(tensor.dtype);
    if (dtype == nullptr) {
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
