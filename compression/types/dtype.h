// The element types that weights, masks and codes have; element_types.h has the table.
#ifndef NNI_COMPRESSION_COMPRESSION_TYPES_DTYPE_H_
#define NNI_COMPRESSION_COMPRESSION_TYPES_DTYPE_H_

#include <c10/core/ScalarType.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "compression/types/element_types.h"

namespace nni_compression::compression {

// With the numbers of the wire.
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

// In the order of their numbers.
std::vector<DataType> DataTypes();

// With the name "unknown" and no bits for what is not a DataType.
const ElementType& ElementTypeOf(DataType dtype);

inline absl::string_view DataTypeName(DataType dtype) { return ElementTypeOf(dtype).name; }

// Float32, float16, bfloat16 or float64.
inline bool IsWeightType(DataType dtype) { return ElementTypeOf(dtype).is_weight; }

constexpr size_t kMaxDimensions = 64;

// Elements of a tensor with this shape. INVALID_ARGUMENT, naming the dimension and the
// allowed range, unless there are 1 to 64 dimensions of at least 1 with a product below 2^48.
absl::StatusOr<int64_t> CountElements(absl::Span<const int64_t> shape);

// Payload bytes of `elements` (at most 2^48) elements, rounded up to whole bytes.
int64_t ByteLength(DataType dtype, int64_t elements);

// LibTorch's name of the type. INVALID_ARGUMENT where it has none, as for kUInt16 and kBit.
absl::StatusOr<c10::ScalarType> ToScalarType(DataType dtype);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_TYPES_DTYPE_H_
