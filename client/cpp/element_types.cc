#include "client/cpp/element_types.h"

#include <algorithm>

namespace nni_compression::internal {
namespace {

constexpr ElementType kElementTypes[] = {
    {"float32", "F32", 32, DataType::kFloat32},    {"float16", "F16", 16, DataType::kFloat16},
    {"bfloat16", "BF16", 16, DataType::kBFloat16}, {"float64", "F64", 64, DataType::kFloat64},
    {"uint8", "U8", 8, DataType::kUInt8},          {"int8", "I8", 8, DataType::kInt8},
    {"uint16", "U16", 16, DataType::kUInt16},      {"int16", "I16", 16, DataType::kInt16},
    {"int32", "I32", 32, DataType::kInt32},        {"int64", "I64", 64, DataType::kInt64},
    {"bool", "BOOL", 8, DataType::kBool},          {"bit", "", 1, DataType::kBit},
    {"uint32", "U32", 32, std::nullopt},           {"uint64", "U64", 64, std::nullopt},
    {"float8_e4m3", "F8_E4M3", 8, std::nullopt},   {"float8_e5m2", "F8_E5M2", 8, std::nullopt},
    {"float8_e8m0", "F8_E8M0", 8, std::nullopt},   {"complex64", "C64", 64, std::nullopt},
};

template <typename Condition>
const ElementType* Find(Condition condition) {
  const auto* found = std::find_if(std::begin(kElementTypes), std::end(kElementTypes), condition);
  return found == std::end(kElementTypes) ? nullptr : found;
}

}  // namespace

absl::Span<const ElementType> ElementTypes() { return kElementTypes; }

const ElementType* FindElementType(DataType dtype) {
  return Find([dtype](const ElementType& type) { return type.dtype == dtype; });
}

const ElementType* FindSafetensorsType(absl::string_view safetensors_name) {
  if (safetensors_name.empty()) return nullptr;
  return Find([safetensors_name](const ElementType& type) {
    return type.safetensors_name == safetensors_name;
  });
}

}  // namespace nni_compression::internal
