#include "compression/kernels/n_m.h"

#include <algorithm>
#include <cstring>

#include "compression/kernels/dispatch.h"
#include "compression/kernels/magnitude.h"
#include "compression/kernels/parallel.h"
#include "compression/kernels/words.h"

namespace nni_compression::compression {
namespace {

// Sets the flags of `size` channels, each of `inner` weights, that begin at element `first`: 1 for
// those that `prune` others of their group do not precede. kSize: that size, known to the compiler;
// 0: it is not.
template <class T, int kSize>
void FlagGroup(const void* weight, const uint8_t* previous, int64_t first, int64_t channels,
               int64_t inner, int64_t prune, uint8_t* flags) {
  using Key = typename Magnitude<T>::Key;
  const int64_t size = kSize > 0 ? kSize : channels;
  for (int64_t i = 0; i < inner; ++i) {
    Key keys[kSize > 0 ? kSize : kMaxM];
    for (int64_t c = 0; c < size; ++c) {
      const int64_t at = first + c * inner + i;
      keys[c] = KeyAt<T>(weight, at);
      if (previous != nullptr && (previous[at >> 3] >> (at & 7) & 1) == 0) keys[c] = -1;
    }
    for (int64_t c = 0; c < size; ++c) {
      int64_t before = 0;
      for (int64_t other = 0; other < size; ++other) {
        before += other < c ? keys[other] <= keys[c] : keys[other] < keys[c];
      }
      flags[first + c * inner + i] = before >= prune && keys[c] >= 0;
    }
  }
}

template <class T>
void Flag(const void* weight, const Channels& channels, int64_t n, int64_t m,
          const uint8_t* previous, uint8_t* flags) {
  const int64_t outer_size = channels.channels * channels.inner;
  const int64_t grain = std::max<int64_t>(1, kGrain / outer_size);
  ParallelFor(channels.outer, grain, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      for (int64_t c = 0; c < channels.channels; c += m) {
        const int64_t size = std::min(m, channels.channels - c);
        const int64_t first = o * outer_size + c * channels.inner;
        const int64_t prune = size - std::min(n, size);
        const auto flag = size == 4   ? FlagGroup<T, 4>
                          : size == 8 ? FlagGroup<T, 8>
                                      : FlagGroup<T, 0>;
        flag(weight, previous, first, size, channels.inner, prune, flags);
      }
    }
  });
}

// Eight flags, 0 or 1, as the bits of a byte.
uint8_t Pack(const uint8_t* flags) {
  uint64_t bytes;
  std::memcpy(&bytes, flags, sizeof bytes);
  return static_cast<uint8_t>((bytes * 0x0102040810204080u) >> 56);
}

}  // namespace

void KeepNOfM(DataType dtype, const void* weight, const Channels& channels, int64_t n, int64_t m,
              const uint8_t* previous, uint8_t* flags, uint8_t* bits) {
  DispatchWeight(dtype, [&](auto tag) {
    Flag<typename decltype(tag)::Type>(weight, channels, n, m, previous, flags);
  });
  const int64_t elements = channels.elements();
  ParallelFor(elements, kGrain, [&](int64_t begin, int64_t end) {
    int64_t i = begin;
    for (; i + 8 <= end; i += 8) bits[i >> 3] = Pack(flags + i);
    if (i < end) bits[i >> 3] = 0;
    for (; i < end; ++i) bits[i >> 3] |= static_cast<uint8_t>(flags[i] << (i & 7));
  });
}

bool HasNOfM(const uint8_t* bits, const Channels& channels, int64_t n, int64_t m) {
  for (int64_t o = 0; o < channels.outer; ++o) {
    for (int64_t c = 0; c < channels.channels; c += m) {
      const int64_t size = std::min(m, channels.channels - c);
      const int64_t first = (o * channels.channels + c) * channels.inner;
      for (int64_t i = 0; i < channels.inner; ++i) {
        int64_t kept = 0;
        for (int64_t k = 0; k < size; ++k) {
          const int64_t at = first + k * channels.inner + i;
          kept += bits[at >> 3] >> (at & 7) & 1;
        }
        if (kept > n) return false;
      }
    }
  }
  return true;
}

}  // namespace nni_compression::compression
