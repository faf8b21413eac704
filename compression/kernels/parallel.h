// The one way to use several threads in a kernel.
#ifndef NNI_COMPRESSION_COMPRESSION_KERNELS_PARALLEL_H_
#define NNI_COMPRESSION_COMPRESSION_KERNELS_PARALLEL_H_

#include <cstdint>

#include "absl/functional/function_ref.h"

namespace nni_compression::compression {

// The least number of elements that is worth a thread; a multiple of the 64 of a mask's word.
constexpr int64_t kGrain = int64_t{1} << 18;

// Calls f(begin, end) for consecutive stretches that together are [0, n), each once, on the calling
// thread and on at most at::get_num_threads() - 1 others, and returns when all are done. Stretches
// begin at multiples of `grain`, but how many there are depends on the thread count: results must
// not. Rethrows what f throws.
//
// Threads are started per call. That costs about 20 us while a block takes at least 100, and unlike
// OpenMP's pool per calling thread it leaves no spinning threads behind.
void ParallelFor(int64_t n, int64_t grain, absl::FunctionRef<void(int64_t, int64_t)> f);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_KERNELS_PARALLEL_H_
