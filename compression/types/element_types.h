// One table of the element types that tensors have, in messages and in .safetensors files. This
// header needs no LibTorch, and the clients include it, too.
#ifndef NNI_COMPRESSION_COMPRESSION_TYPES_ELEMENT_TYPES_H_
#define NNI_COMPRESSION_COMPRESSION_TYPES_ELEMENT_TYPES_H_

#include <cstddef>
#include <iterator>

#include "absl/strings/string_view.h"

namespace nni_compression {

struct ElementType {
  absl::string_view name;         // "float32", "bit", ...; the wire's is DATA_TYPE_ and this
  absl::string_view safetensors;  // "F32"; empty: its files cannot hold the type
  int bits;                       // of an element; below 8, elements are packed without gaps
  bool is_weight;                 // whether a weight may be of it
};

inline constexpr ElementType kElementTypes[] = {
    // By their numbers on the wire, from 1.
    {"float32", "F32", 32, true},
    {"float16", "F16", 16, true},
    {"bfloat16", "BF16", 16, true},
    {"float64", "F64", 64, true},
    {"uint8", "U8", 8, false},
    {"int8", "I8", 8, false},
    {"uint16", "U16", 16, false},
    {"int16", "I16", 16, false},
    {"int32", "I32", 32, false},
    {"int64", "I64", 64, false},
    {"bool", "BOOL", 8, false},
    {"bit", "", 1, false},  // bit 0 of byte 0 is element 0
    // The service does not take these; files have them.
    {"uint32", "U32", 32, false},
    {"uint64", "U64", 64, false},
    {"float8_e4m3", "F8_E4M3", 8, false},
    {"float8_e5m2", "F8_E5M2", 8, false},
    {"float8_e8m0", "F8_E8M0", 8, false},
    {"complex64", "C64", 64, false},
};
inline constexpr size_t kWireTypes = 12;  // rows that the service takes

// By the number on the wire. Null for one that is not an element type.
constexpr const ElementType* FindElementType(int number) {
  if (number < 1 || number > static_cast<int>(kWireTypes)) return nullptr;
  return &kElementTypes[number - 1];
}

// Null for a name that the format does not have.
inline const ElementType* FindSafetensorsType(absl::string_view safetensors) {
  for (const ElementType& type : kElementTypes) {
    if (type.safetensors == safetensors && !safetensors.empty()) return &type;
  }
  return nullptr;
}

// The number on the wire; 0 for a type that the service does not take.
inline int WireNumber(const ElementType& type) {
  const auto row = static_cast<size_t>(&type - std::begin(kElementTypes));
  return row < kWireTypes ? static_cast<int>(row) + 1 : 0;
}

}  // namespace nni_compression

#endif  // NNI_COMPRESSION_COMPRESSION_TYPES_ELEMENT_TYPES_H_
