// What an algorithm is, for plugins.
#ifndef NNI_COMPRESSION_COMPRESSION_ALGORITHM_H_
#define NNI_COMPRESSION_COMPRESSION_ALGORITHM_H_

#include "compression/algorithms/algorithm.h"

#endif  // NNI_COMPRESSION_COMPRESSION_ALGORITHM_H_
