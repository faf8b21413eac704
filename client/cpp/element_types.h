// The types that elements of tensors have: one table for the wire and for .safetensors files.
#ifndef NNI_COMPRESSION_CLIENT_CPP_ELEMENT_TYPES_H_
#define NNI_COMPRESSION_CLIENT_CPP_ELEMENT_TYPES_H_

#include <cstdint>
#include <optional>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "nni_compression/types.h"

namespace nni_compression::internal {

struct ElementType {
  absl::string_view name;              // "float32"
  absl::string_view safetensors_name;  // "F32"; empty when the format lacks the type
  int bits;                            // elements of less than 8 bits are packed without gaps
  std::optional<DataType> dtype;       // nullopt when the service does not take the type
};

absl::Span<const ElementType> ElementTypes();

// Null when there is none.
const ElementType* FindElementType(DataType dtype);
const ElementType* FindSafetensorsType(absl::string_view safetensors_name);

}  // namespace nni_compression::internal

#endif  // NNI_COMPRESSION_CLIENT_CPP_ELEMENT_TYPES_H_
