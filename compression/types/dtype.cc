#include "compression/types/dtype.h"

#include <cstddef>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace nni_compression::compression {
namespace {

constexpr int64_t kMaxElements = (int64_t{1} << 48) - 1;

constexpr ElementType kUnknown = {"unknown", "", 0, false};

}  // namespace

std::vector<DataType> DataTypes() {
  std::vector<DataType> types(kWireTypes);
  for (size_t row = 0; row < kWireTypes; ++row) types[row] = static_cast<DataType>(row + 1);
  return types;
}

const ElementType& ElementTypeOf(DataType dtype) {
  const ElementType* const type = FindElementType(static_cast<int>(dtype));
  return type == nullptr ? kUnknown : *type;
}

absl::StatusOr<int64_t> CountElements(absl::Span<const int64_t> shape) {
  if (shape.empty() || shape.size() > kMaxDimensions) {
    return absl::InvalidArgumentError(absl::StrCat(
        "shape has ", shape.size(), " dimensions; it must have 1 to ", kMaxDimensions));
  }
  int64_t elements = 1;
  for (size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("shape[", i, "] is ", shape[i], "; it must be at least 1"));
    }
    if (shape[i] > kMaxElements / elements) {
      return absl::InvalidArgumentError(absl::StrCat("shape is [", absl::StrJoin(shape, ", "),
                                                     "]; it must hold fewer than 2^48 elements"));
    }
    elements *= shape[i];
  }
  return elements;
}

int64_t ByteLength(DataType dtype, int64_t elements) {
  return (elements * ElementTypeOf(dtype).bits + 7) / 8;
}

absl::StatusOr<c10::ScalarType> ToScalarType(DataType dtype) {
  switch (dtype) {
    case DataType::kFloat32:
      return c10::ScalarType::Float;
    case DataType::kFloat16:
      return c10::ScalarType::Half;
    case DataType::kBFloat16:
      return c10::ScalarType::BFloat16;
    case DataType::kFloat64:
      return c10::ScalarType::Double;
    case DataType::kUInt8:
      return c10::ScalarType::Byte;
    case DataType::kInt8:
      return c10::ScalarType::Char;
    case DataType::kInt16:
      return c10::ScalarType::Short;
    case DataType::kInt32:
      return c10::ScalarType::Int;
    case DataType::kInt64:
      return c10::ScalarType::Long;
    case DataType::kBool:
      return c10::ScalarType::Bool;
    case DataType::kUInt16:
    case DataType::kBit:
      break;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("libtorch has no element type ", DataTypeName(dtype)));
}

}  // namespace nni_compression::compression
