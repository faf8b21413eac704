#include "compression/kernels/apply_mask.h"

#include "absl/numeric/bits.h"
#include "compression/kernels/dispatch.h"
#include "compression/kernels/parallel.h"
#include "compression/kernels/words.h"

namespace nni_compression::compression {

void ApplyMask(const Mask& mask, DataType dtype, void* weight) {
  const int64_t n = mask.elements();
  DispatchWeight(dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    auto* elements = static_cast<T*>(weight);
    ParallelFor(n, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i += 64) {
        uint64_t pruned = ~LoadWord(mask.bits().data(), i, n) & LowBits(WordSize(i, n));
        for (; pruned != 0; pruned &= pruned - 1) elements[i + absl::countr_zero(pruned)] = T(0);
      }
    });
  });
}

}  // namespace nni_compression::compression
