#include "compression/exporters/safetensors_header.h"

#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compression/messages/names.h"
#include "compression/messages/suggest.h"
#include "compression/types/safetensors_bytes.h"

namespace nni_compression::compression {
namespace {

// Where a tensor's data is.
struct Entry {
  const ExportTensor* tensor;
  int64_t begin;
  int64_t end;
};

}  // namespace

absl::StatusOr<std::string> SafetensorsHeader(absl::Span<const ExportTensor> tensors,
                                              const std::map<std::string, std::string>& metadata) {
  std::map<std::string, Entry> entries;
  int64_t offset = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const ExportTensor& tensor = tensors[i];
    const std::string path = absl::StrCat("tensors[", i, "]");
    if (auto s = CheckName(tensor.name, kMaxLayerNameBytes, path + ".name"); !s.ok()) return s;
    if (ElementTypeOf(tensor.dtype).safetensors.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ".dtype is ", DataTypeName(tensor.dtype),
                                                     ", which safetensors files cannot hold"));
    }
    const int64_t end = offset + tensor.byte_length;
    const bool fresh = entries.try_emplace(tensor.name, Entry{&tensor, offset, end}).second;
    if (!fresh || tensor.name == kSafetensorsMetadata) {
      return absl::InvalidArgumentError(absl::StrCat(path, ".name is ", Quoted(tensor.name),
                                                     "; names must be unique and not ",
                                                     kSafetensorsMetadata));
    }
    offset = end;
  }
  SafetensorsBytes header;
  header.SetMetadata(metadata);
  for (const auto& [name, entry] : entries) {
    const ExportTensor& tensor = *entry.tensor;
    header.Add(name, ElementTypeOf(tensor.dtype).safetensors, tensor.shape, entry.begin, entry.end);
  }
  return std::move(header).Finish();
}

}  // namespace nni_compression::compression
