// The element types that weights, masks and codes have.
#ifndef NNI_COMPRESSION_COMPRESSION_DTYPE_H_
#define NNI_COMPRESSION_COMPRESSION_DTYPE_H_

#include <c10/core/ScalarType.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace nni_compression::compression {

enum class DataType : uint8_t {
  kFloat32 = 1,
  kFloat16,
  kBFloat16,
  kFloat64,
  kUInt8,
  kInt8,
  kUInt16,
  kInt16,
  kInt32,
  kInt64,
  kBool,
  kBit,  // packed: bit 0 of byte 0 is element 0
};

// "float32", "bit", ...
absl::string_view DataTypeName(DataType dtype);

// Float32, float16, bfloat16 or float64: what a weight may be.
bool IsWeightType(DataType dtype);

constexpr size_t kMaxDimensions = 64;

// Elements of a tensor with this shape. INVALID_ARGUMENT, naming the dimension and the
// allowed range, unless there are 1 to 64 dimensions of at least 1 with a product below 2^48.
absl::StatusOr<int64_t> CountElements(absl::Span<const int64_t> shape);

// Payload bytes of `elements` (at most 2^48) elements; kBit rounds up to whole bytes.
int64_t ByteLength(DataType dtype, int64_t elements);

// LibTorch's type; nullopt for kUInt16 and kBit, which LibTorch 1.13 lacks.
absl::StatusOr<c10::ScalarType> ToScalarType(DataType dtype);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_DTYPE_H_
