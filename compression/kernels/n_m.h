// Structure n:m: of m consecutive input channels n are kept.
#ifndef NNI_COMPRESSION_COMPRESSION_KERNELS_N_M_H_
#define NNI_COMPRESSION_COMPRESSION_KERNELS_N_M_H_

#include <cstdint>

#include "compression/kernels/range.h"
#include "compression/types/dtype.h"

namespace nni_compression::compression {

constexpr int64_t kMaxM = 32;

// Writes the packed mask, ceil(elements / 8) bytes, of a weight whose input channels are
// `channels`: wherever else a weight is, of each m consecutive channels those n with the largest
// magnitudes are kept, of equal ones those with the higher index. In the last group, which may have
// fewer than m, min(n, its size) are kept. What `previous`, a packed mask or null, removes goes
// first and stays removed. 1 <= n <= m <= kMaxM. The weight has finite elements only.
//
// `flags`: one byte for each element, for its own use.
void KeepNOfM(DataType dtype, const void* weight, const Channels& channels, int64_t n, int64_t m,
              const uint8_t* previous, uint8_t* flags, uint8_t* bits);

// Whether a packed mask keeps at most n of each m.
bool HasNOfM(const uint8_t* bits, const Channels& channels, int64_t n, int64_t m);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_KERNELS_N_M_H_
