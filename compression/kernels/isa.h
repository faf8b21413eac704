// Which instructions the hot loops may use.
#ifndef NNI_COMPRESSION_COMPRESSION_KERNELS_ISA_H_
#define NNI_COMPRESSION_COMPRESSION_KERNELS_ISA_H_

#include <optional>
#include <vector>

namespace nni_compression::compression {

// kPortable is what the compiler may assume of any processor that it builds for.
enum class Isa { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };

const char* IsaName(Isa isa);

// The instruction sets of this processor, the best last. Results do not depend on them, bit for
// bit.
std::vector<Isa> SupportedIsas();

// The one in use: the best, unless a test has set another.
Isa CurrentIsa();

// Sets one of SupportedIsas() for all threads; nullopt: the best again.
void SetIsaForTesting(std::optional<Isa> isa);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_KERNELS_ISA_H_
