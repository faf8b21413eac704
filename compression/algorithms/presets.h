// The pruners that are built in.
#ifndef NNI_COMPRESSION_COMPRESSION_ALGORITHMS_PRESETS_H_
#define NNI_COMPRESSION_COMPRESSION_ALGORITHMS_PRESETS_H_

#include <vector>

#include "compression/algorithms/algorithm.h"

namespace nni_compression::compression {

// Named choices of score, scope and schedule.
std::vector<AlgorithmInfo> PrunerPresets();

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_ALGORITHMS_PRESETS_H_
