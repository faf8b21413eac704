// What an algorithm says about itself, checked before it is registered.
#ifndef NNI_COMPRESSION_COMPRESSION_ALGORITHMS_CHECK_INFO_H_
#define NNI_COMPRESSION_COMPRESSION_ALGORITHMS_CHECK_INFO_H_

#include "absl/status/status.h"
#include "compression/algorithms/algorithm.h"

namespace nni_compression::compression {

// An entry of the registry that can be served: named as others are, with options whose names and
// defaults are fine and an example that fits them. INVALID_ARGUMENT otherwise.
absl::Status CheckInfo(const AlgorithmInfo& info);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_ALGORITHMS_CHECK_INFO_H_
