// What an algorithm says about itself, checked before it is registered.
#ifndef NNI_COMPRESSION_COMPRESSION_ALGORITHMS_CHECK_INFO_H_
#define NNI_COMPRESSION_COMPRESSION_ALGORITHMS_CHECK_INFO_H_

#include "absl/status/status.h"
#include "compression/algorithms/algorithm.h"

namespace nni_compression::compression {

// Checks a registry entry: its name, the names and defaults of its options, and its example.
// INVALID_ARGUMENT.
absl::Status CheckInfo(const AlgorithmInfo& info);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_ALGORITHMS_CHECK_INFO_H_
