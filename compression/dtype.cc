#include "compression/dtype.h"

#include <cstddef>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace nni_compression::compression {
namespace {

constexpr int64_t kMaxElements = (int64_t{1} << 48) - 1;

// Bytes of one element; 0 for kBit.
int ByteWidth(DataType dtype) {
  switch (dtype) {
    case DataType::kFloat64:
    case DataType::kInt64:
      return 8;
    case DataType::kFloat32:
    case DataType::kInt32:
      return 4;
    case DataType::kFloat16:
    case DataType::kBFloat16:
    case DataType::kUInt16:
    case DataType::kInt16:
      return 2;
    case DataType::kUInt8:
    case DataType::kInt8:
    case DataType::kBool:
      return 1;
    case DataType::kBit:
      return 0;
  }
  return 0;
}

}  // namespace

absl::string_view DataTypeName(DataType dtype) {
  switch (dtype) {
    case DataType::kFloat32:
      return "float32";
    case DataType::kFloat16:
      return "float16";
    case DataType::kBFloat16:
      return "bfloat16";
    case DataType::kFloat64:
      return "float64";
    case DataType::kUInt8:
      return "uint8";
    case DataType::kInt8:
      return "int8";
    case DataType::kUInt16:
      return "uint16";
    case DataType::kInt16:
      return "int16";
    case DataType::kInt32:
      return "int32";
    case DataType::kInt64:
      return "int64";
    case DataType::kBool:
      return "bool";
    case DataType::kBit:
      return "bit";
  }
  return "unknown";
}

bool IsWeightType(DataType dtype) {
  return dtype == DataType::kFloat32 || dtype == DataType::kFloat16 ||
         dtype == DataType::kBFloat16 || dtype == DataType::kFloat64;
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
  if (dtype == DataType::kBit) return (elements + 7) / 8;
  return elements * ByteWidth(dtype);
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
