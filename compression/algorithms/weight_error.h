// What an algorithm answers to a weight that is not finite.
#ifndef NNI_COMPRESSION_COMPRESSION_ALGORITHMS_WEIGHT_ERROR_H_
#define NNI_COMPRESSION_COMPRESSION_ALGORITHMS_WEIGHT_ERROR_H_

#include "absl/status/status.h"
#include "compression/types/layer.h"

namespace nni_compression::compression {

// The error for a weight that has an element that is infinite, NaN, or, if `as_float32`, too large
// for float32: INVALID_ARGUMENT that names the layer, the first such flat index and the value.
absl::Status NonFiniteError(const Layer& layer, const void* weight, bool as_float32 = false);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_ALGORITHMS_WEIGHT_ERROR_H_
