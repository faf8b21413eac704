// Whether weights are numbers.
#ifndef NNI_COMPRESSION_COMPRESSION_KERNELS_FINITE_H_
#define NNI_COMPRESSION_COMPRESSION_KERNELS_FINITE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "compression/dtype.h"
#include "compression/layer.h"

namespace nni_compression::compression {

// Whether all of the n elements are finite; uses several threads.
bool AllFinite(DataType dtype, const void* weight, int64_t n);

// The error for a weight that has an element that is infinite, NaN, or, if `as_float32`, too large
// for float32: INVALID_ARGUMENT that names the layer, the first such flat index and the value.
absl::Status NonFiniteError(const Layer& layer, const void* weight, bool as_float32 = false);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_KERNELS_FINITE_H_
