// The header of a .safetensors file (https://huggingface.co/docs/safetensors), written:
//
//   length of the header (8 bytes, little-endian) | header (JSON, padded with spaces) | tensors
//
// This header needs no LibTorch, and the clients include it, too.
#ifndef NNI_COMPRESSION_COMPRESSION_TYPES_SAFETENSORS_BYTES_H_
#define NNI_COMPRESSION_COMPRESSION_TYPES_SAFETENSORS_BYTES_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace nni_compression {

inline constexpr char kSafetensorsMetadata[] = "__metadata__";
inline constexpr size_t kSafetensorsLengthBytes = 8;

// Makes length and header from tensors, one after the other: one JSON object of all of them would
// search its keys for each.
class SafetensorsBytes {
 public:
  void SetMetadata(const std::map<std::string, std::string>& metadata) {
    Append(kSafetensorsMetadata, metadata);
  }

  // The name must be UTF-8; `begin` and `end` are offsets into the data.
  void Add(const std::string& name, absl::string_view dtype, absl::Span<const int64_t> shape,
           int64_t begin, int64_t end) {
    Append(name, {{"dtype", std::string(dtype)},
                  {"shape", std::vector<int64_t>(shape.begin(), shape.end())},
                  {"data_offsets", {begin, end}}});
  }

  // The first bytes of the file. The data that follows is aligned to 8 bytes.
  std::string Finish() && {
    std::string json = absl::StrCat("{", entries_, "}");
    json.resize((json.size() + 7) / 8 * 8, ' ');
    std::string bytes;
    for (size_t i = 0; i < kSafetensorsLengthBytes; ++i) {
      bytes.push_back(static_cast<char>(static_cast<uint64_t>(json.size()) >> (8 * i)));
    }
    return bytes + json;
  }

 private:
  void Append(const std::string& name, const nlohmann::ordered_json& entry) {
    absl::StrAppend(&entries_, entries_.empty() ? "" : ",", nlohmann::json(name).dump(), ":",
                    entry.dump());
  }

  std::string entries_;
};

}  // namespace nni_compression

#endif  // NNI_COMPRESSION_COMPRESSION_TYPES_SAFETENSORS_BYTES_H_
