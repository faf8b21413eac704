#include "compression/kernels/finite.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "compression/kernels/dispatch.h"
#include "compression/kernels/magnitude.h"
#include "compression/kernels/parallel.h"
#include "compression/suggest.h"

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

absl::Status NonFiniteError(const Layer& layer, const void* weight, bool as_float32) {
  return DispatchWeight(layer.dtype, [&](auto tag) -> absl::Status {
    using T = typename decltype(tag)::Type;
    for (int64_t i = 0; i < layer.elements; ++i) {
      T element;
      std::memcpy(&element, static_cast<const char*>(weight) + i * int64_t{sizeof(T)},
                  sizeof element);
      const auto value = static_cast<double>(element);
      if (!std::isfinite(value)) {
        return absl::InvalidArgumentError(
            absl::StrCat("weight of layer ", Quoted(layer.name), ": element ", i, " is ",
                         Shown(nlohmann::json(value)), "; it must be finite"));
      }
      if (as_float32 && !std::isfinite(static_cast<float>(value))) {
        return absl::InvalidArgumentError(
            absl::StrCat("weight of layer ", Quoted(layer.name), ": element ", i, " is ",
                         Shown(nlohmann::json(value)), "; it must be in the range of float32"));
      }
    }
    // The caller found one, so the bytes have changed since.
    return absl::InvalidArgumentError(
        absl::StrCat("weight of layer ", Quoted(layer.name), " changed while it was read"));
  });
}

}  // namespace nni_compression::compression
