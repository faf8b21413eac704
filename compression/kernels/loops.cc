#include "compression/kernels/loops.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "compression/kernels/isa.h"
#include "compression/kernels/magnitude.h"
#include "compression/kernels/words.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nni_compression::compression {

Bounds Bounds::None() {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  return {kInfinity, -kInfinity, false};
}

void Bounds::Add(const Bounds& other) {
  minimum = std::min(minimum, other.minimum);
  maximum = std::max(maximum, other.maximum);
  bad |= other.bad;
}

}  // namespace nni_compression::compression

// The same source, once for each instruction set. Its definitions are compiled for that set and are
// in a separate namespace, so that no other code can link to them.
#define NNI_COMPRESSION_ISA portable
#define NNI_COMPRESSION_ISA_LEVEL 0
#include "compression/kernels/loops-inl.h"
#undef NNI_COMPRESSION_ISA
#undef NNI_COMPRESSION_ISA_LEVEL

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2,popcnt,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2,popcnt,f16c")
#endif
#define NNI_COMPRESSION_ISA avx2
#define NNI_COMPRESSION_ISA_LEVEL 1
#include "compression/kernels/loops-inl.h"
#undef NNI_COMPRESSION_ISA
#undef NNI_COMPRESSION_ISA_LEVEL
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(__clang__)
#pragma clang attribute push(                                                                \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi,bmi2,popcnt,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,bmi,bmi2,popcnt,f16c")
#pragma GCC target("prefer-vector-width=512")
#endif
#define NNI_COMPRESSION_ISA avx512
#define NNI_COMPRESSION_ISA_LEVEL 2
#include "compression/kernels/loops-inl.h"
#undef NNI_COMPRESSION_ISA
#undef NNI_COMPRESSION_ISA_LEVEL
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // __x86_64__

namespace nni_compression::compression {

const Loops& CurrentLoops() {
  switch (CurrentIsa()) {
#if defined(__x86_64__)
    case Isa::kAvx512:
      return avx512::kLoops;
    case Isa::kAvx2:
      return avx2::kLoops;
#endif
    default:
      return portable::kLoops;
  }
}

}  // namespace nni_compression::compression
