#include <algorithm>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cli/checkpoints/safetensors.h"
#include "client/cli/strict_json.h"
#include "compression/types/element_types.h"
#include "compression/types/safetensors_bytes.h"

namespace nni_compression::cli {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr int kMaxHeaderDepth = 4;

template <typename... Args>
absl::Status Bad(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

absl::StatusOr<FileTensor> ParseTensor(const std::string& name, const Json& json) {
  const auto bad = [&](absl::string_view why) { return Bad("tensor ", name, ": ", why); };
  if (!json.is_object()) return bad("its entry is not an object");
  const auto dtype = json.find("dtype");
  const auto shape = json.find("shape");
  const auto offsets = json.find("data_offsets");
  if (dtype == json.end() || !dtype->is_string()) return bad("dtype is missing or not a string");
  if (shape == json.end() || !shape->is_array()) return bad("shape is missing or not a list");
  if (offsets == json.end() || !offsets->is_array() || offsets->size() != 2) {
    return bad("data_offsets is missing or not a list of two numbers");
  }
  FileTensor tensor;
  tensor.name = name;
  tensor.dtype = dtype->get<std::string>();
  __int128 bits = ElementBits(tensor.dtype);
  if (bits == 0) return bad(absl::StrCat("dtype ", tensor.dtype, " is not known"));
  for (const Json& dimension : *shape) {
    if (!dimension.is_number_unsigned() ||
        dimension.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
      return bad(absl::StrCat("shape has ", dimension.dump(), "; a dimension is at least 0"));
    }
    tensor.shape.push_back(dimension.get<int64_t>());
    if (__builtin_mul_overflow(bits, tensor.shape.back(), &bits) || bits / 8 > INT64_MAX) {
      return bad("the product of its shape overflows");
    }
  }
  if (bits % 8 != 0) return bad("its elements end within a byte");
  const auto bytes = static_cast<int64_t>(bits / 8);
  for (const Json& offset : *offsets) {
    if (!offset.is_number_unsigned() || offset.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
      return bad(absl::StrCat("data_offsets has ", offset.dump()));
    }
  }
  tensor.begin = (*offsets)[0].get<int64_t>();
  tensor.end = (*offsets)[1].get<int64_t>();
  if (tensor.end < tensor.begin || tensor.end - tensor.begin != bytes) {
    return bad(absl::StrCat("data_offsets are [", tensor.begin, ", ", tensor.end,
                            "]; its shape and dtype need ", bytes, " bytes"));
  }
  return tensor;
}

// The tensors, sorted, must cover the data without gap or overlap.
absl::Status CheckOffsets(const std::vector<FileTensor>& tensors, int64_t data_bytes) {
  int64_t end = 0;
  for (const FileTensor& tensor : tensors) {
    if (tensor.begin < end) {
      return Bad("tensor ", tensor.name, " begins at ", tensor.begin, ", inside another one");
    }
    if (tensor.begin > end) {
      return Bad("tensor ", tensor.name, " begins at ", tensor.begin, ", after a gap from ", end);
    }
    end = tensor.end;
  }
  if (end > data_bytes) {
    return Bad("the file is truncated: its tensors have ", end, " bytes, it holds ", data_bytes);
  }
  if (end < data_bytes) return Bad("the file has ", data_bytes - end, " bytes after its tensors");
  return absl::OkStatus();
}

}  // namespace

std::optional<DataType> ToDataType(absl::string_view dtype) {
  const ElementType* const type = FindSafetensorsType(dtype);
  const int number = type == nullptr ? 0 : WireNumber(*type);
  if (number == 0) return std::nullopt;
  return static_cast<DataType>(number);
}

int ElementBits(absl::string_view dtype) {
  const ElementType* const type = FindSafetensorsType(dtype);
  return type == nullptr ? 0 : type->bits;
}

absl::StatusOr<int64_t> DataBegin(absl::Span<const uint8_t> first_bytes, int64_t file_bytes) {
  if (first_bytes.size() < kLengthBytes) {
    return Bad("the file has ", file_bytes, " bytes; the header's length alone takes 8");
  }
  uint64_t length = 0;
  for (int i = kLengthBytes - 1; i >= 0; --i) length = length << 8 | first_bytes[i];
  if (length < 2 || length > kMaxHeaderBytes) {
    return Bad("the header's length is ", length, "; it must be in [2, ", kMaxHeaderBytes, "]");
  }
  if (static_cast<int64_t>(length) > file_bytes - kLengthBytes) {
    return Bad("the file is truncated: its header has ", length, " bytes, the file ", file_bytes);
  }
  return kLengthBytes + static_cast<int64_t>(length);
}

absl::StatusOr<SafetensorsHeader> ParseHeader(absl::Span<const uint8_t> bytes, int64_t file_bytes) {
  const auto data_begin = DataBegin(bytes, file_bytes);
  if (!data_begin.ok()) return data_begin.status();
  const absl::string_view text(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes,
                               *data_begin - kLengthBytes);
  if (text[0] != '{') return Bad("the header does not begin with {; is this a safetensors file?");
  const auto json = ParseStrictJson(text, kMaxHeaderDepth);
  if (!json.ok()) return Bad("the header: ", json.status().message());
  SafetensorsHeader header;
  header.data_begin = *data_begin;
  for (const auto& [name, entry] : json->items()) {
    if (name == kSafetensorsMetadata) {
      if (!entry.is_object()) return Bad("__metadata__ is not an object");
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string()) return Bad("__metadata__.", key, " is not a string");
        header.metadata[key] = value.get<std::string>();
      }
      continue;
    }
    auto tensor = ParseTensor(name, entry);
    if (!tensor.ok()) return tensor.status();
    header.tensors.push_back(*std::move(tensor));
  }
  std::sort(header.tensors.begin(), header.tensors.end(),
            [](const FileTensor& a, const FileTensor& b) {
              return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
            });
  absl::Status checked = CheckOffsets(header.tensors, file_bytes - *data_begin);
  if (!checked.ok()) return checked;
  return header;
}

std::string SerializeHeader(const SafetensorsHeader& header) {
  SafetensorsBytes bytes;
  if (!header.metadata.empty()) bytes.SetMetadata(header.metadata);
  for (const FileTensor& tensor : header.tensors) {
    bytes.Add(tensor.name, tensor.dtype, tensor.shape, tensor.begin, tensor.end);
  }
  return std::move(bytes).Finish();
}

}  // namespace nni_compression::cli
