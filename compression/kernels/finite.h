// Whether weights are numbers.
#ifndef NNI_COMPRESSION_COMPRESSION_KERNELS_FINITE_H_
#define NNI_COMPRESSION_COMPRESSION_KERNELS_FINITE_H_

#include <cstdint>

#include "compression/types/dtype.h"

namespace nni_compression::compression {

// Whether all of the n elements are finite; uses several threads.
bool AllFinite(DataType dtype, const void* weight, int64_t n);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_KERNELS_FINITE_H_
