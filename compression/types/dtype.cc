#include "compression/types/dtype.h"

#include <cstddef>
#include <iterator>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace nni_compression::compression {
namespace {

constexpr int64_t kMaxElements = (int64_t{1} << 48) - 1;

constexpr DataTypeInfo kDataTypes[] = {
    {DataType::kFloat32, "float32", "F32", 32, c10::ScalarType::Float, true},
    {DataType::kFloat16, "float16", "F16", 16, c10::ScalarType::Half, true},
    {DataType::kBFloat16, "bfloat16", "BF16", 16, c10::ScalarType::BFloat16, true},
    {DataType::kFloat64, "float64", "F64", 64, c10::ScalarType::Double, true},
    {DataType::kUInt8, "uint8", "U8", 8, c10::ScalarType::Byte, false},
    {DataType::kInt8, "int8", "I8", 8, c10::ScalarType::Char, false},
    {DataType::kUInt16, "uint16", "U16", 16, c10::ScalarType::Undefined, false},
    {DataType::kInt16, "int16", "I16", 16, c10::ScalarType::Short, false},
    {DataType::kInt32, "int32", "I32", 32, c10::ScalarType::Int, false},
    {DataType::kInt64, "int64", "I64", 64, c10::ScalarType::Long, false},
    {DataType::kBool, "bool", "BOOL", 8, c10::ScalarType::Bool, false},
    {DataType::kBit, "bit", "", 1, c10::ScalarType::Undefined, false},
};
constexpr DataTypeInfo kUnknown = {DataType{}, "unknown", "", 0, c10::ScalarType::Undefined, false};

constexpr int kFirst = static_cast<int>(kDataTypes[0].type);

constexpr bool RowsFollowTheirTypes() {
  int type = kFirst;
  for (const DataTypeInfo& row : kDataTypes) {
    if (static_cast<int>(row.type) != type++) return false;
  }
  return true;
}
static_assert(RowsFollowTheirTypes());

}  // namespace

absl::Span<const DataTypeInfo> DataTypes() { return kDataTypes; }

const DataTypeInfo& InfoOf(DataType dtype) {
  const auto row = static_cast<size_t>(static_cast<int>(dtype) - kFirst);
  return row < std::size(kDataTypes) ? kDataTypes[row] : kUnknown;
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
  return (elements * InfoOf(dtype).bits + 7) / 8;
}

absl::StatusOr<c10::ScalarType> ToScalarType(DataType dtype) {
  const c10::ScalarType type = InfoOf(dtype).torch;
  if (type != c10::ScalarType::Undefined) return type;
  return absl::InvalidArgumentError(
      absl::StrCat("libtorch has no element type ", DataTypeName(dtype)));
}

}  // namespace nni_compression::compression
