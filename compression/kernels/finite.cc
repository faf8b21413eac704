#include "compression/kernels/finite.h"

#include <algorithm>
#include <atomic>

#include "compression/kernels/dispatch.h"
#include "compression/kernels/magnitude.h"
#include "compression/kernels/parallel.h"

namespace nni_compression::compression {
namespace {

template <class T>
bool RangeIsFinite(const void* weight, int64_t begin, int64_t end) {
  constexpr int64_t kBlock = 4096;
  for (int64_t i = begin; i < end; i += kBlock) {
    const int64_t block_end = std::min(end, i + kBlock);
    typename Magnitude<T>::Key bad = 0;
    for (int64_t j = i; j < block_end; ++j) {
      bad |=
          static_cast<typename Magnitude<T>::Key>(KeyAt<T>(weight, j) >= Magnitude<T>::kNonFinite);
    }
    if (bad != 0) return false;
  }
  return true;
}

}  // namespace

bool AllFinite(DataType dtype, const void* weight, int64_t n) {
  std::atomic<bool> finite{true};
  DispatchWeight(dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    ParallelFor(n, kGrain, [&](int64_t begin, int64_t end) {
      if (!RangeIsFinite<T>(weight, begin, end)) finite = false;
    });
  });
  return finite;
}

}  // namespace nni_compression::compression
