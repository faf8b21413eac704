// From a weight's run-time type to a C++ type.
#ifndef NNI_COMPRESSION_COMPRESSION_KERNELS_DISPATCH_H_
#define NNI_COMPRESSION_COMPRESSION_KERNELS_DISPATCH_H_

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <utility>

#include "compression/types/dtype.h"

namespace nni_compression::compression {

template <class T>
struct TypeTag {
  using Type = T;
};

// Calls f(TypeTag<T>()) with T the C++ type of a weight's elements. Requires IsWeightType(dtype).
template <class F>
auto DispatchWeight(DataType dtype, F&& f) {
  switch (dtype) {
    case DataType::kFloat16:
      return f(TypeTag<c10::Half>());
    case DataType::kBFloat16:
      return f(TypeTag<c10::BFloat16>());
    case DataType::kFloat64:
      return f(TypeTag<double>());
    default:
      return f(TypeTag<float>());
  }
}

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_KERNELS_DISPATCH_H_
