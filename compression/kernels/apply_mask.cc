#include "compression/kernels/apply_mask.h"

#include <vector>

#include "absl/numeric/bits.h"
#include "compression/kernels/dispatch.h"
#include "compression/kernels/parallel.h"
#include "compression/kernels/quantize.h"
#include "compression/kernels/words.h"

namespace nni_compression::compression {
namespace {

// Calls f(i) for each pruned element i, on several threads.
template <class F>
void ForEachPruned(const uint8_t* mask, int64_t n, const F& f) {
  ParallelFor(n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += 64) {
      uint64_t pruned = ~LoadWord(mask, i, n) & LowBits(WordSize(i, n));
      for (; pruned != 0; pruned &= pruned - 1) f(i + absl::countr_zero(pruned));
    }
  });
}

template <class T>
void ZeroCodes(const uint8_t* mask, const Channels& channels,
               const std::vector<int32_t>& zero_point, T* codes) {
  ForEachPruned(mask, channels.elements(), [&](int64_t i) {
    codes[i] = static_cast<T>(zero_point[i / channels.inner % channels.channels]);
  });
}

}  // namespace

void ApplyMask(const uint8_t* mask, int64_t n, DataType dtype, void* weight) {
  DispatchWeight(dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    auto* elements = static_cast<T*>(weight);
    ForEachPruned(mask, n, [&](int64_t i) { elements[i] = T(0); });
  });
}

void ApplyMask(const uint8_t* mask, const Channels& channels,
               const QuantizationParameters& parameters, void* codes) {
  const std::vector<int32_t>& zero_point = parameters.zero_point;
  switch (CodeType(parameters)) {
    case DataType::kInt8:
      return ZeroCodes(mask, channels, zero_point, static_cast<int8_t*>(codes));
    case DataType::kUInt8:
      return ZeroCodes(mask, channels, zero_point, static_cast<uint8_t*>(codes));
    case DataType::kInt16:
      return ZeroCodes(mask, channels, zero_point, static_cast<int16_t*>(codes));
    default:
      return ZeroCodes(mask, channels, zero_point, static_cast<uint16_t*>(codes));
  }
}

}  // namespace nni_compression::compression
