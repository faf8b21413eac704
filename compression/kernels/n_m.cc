#include "compression/kernels/n_m.h"

#include <algorithm>
#include <cstring>

#include "compression/kernels/dispatch.h"
#include "compression/kernels/isa.h"
#include "compression/kernels/magnitude.h"
#include "compression/kernels/parallel.h"
#include "compression/kernels/words.h"

namespace nni_compression::compression {
namespace {

// Sets the flags of a group of `size` channels, each of `inner` weights, that begins at element
// `first`: 1 for those that at least `prune` others of the group precede.
template <class T>
void FlagGroup(const void* weight, const uint8_t* previous, int64_t first, int64_t size,
               int64_t inner, int64_t prune, uint8_t* flags) {
  using Key = typename Magnitude<T>::Key;
  for (int64_t i = 0; i < inner; ++i) {
    Key keys[kMaxM];
    for (int64_t c = 0; c < size; ++c) {
      const int64_t at = first + c * inner + i;
      keys[c] = KeyAt<T>(weight, at);
      if (previous != nullptr && !BitAt(previous, at)) keys[c] = -1;
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

// Groups of four, the ones that hardware has: of kPlaces at a time, so that comparisons are of
// vectors. A place is one of a channel.
constexpr int64_t kPlaces = 64;

template <class Key>
struct Fours {
  Key keys[4][kPlaces];
  uint8_t flags[4][kPlaces];
};

template <class Key>
inline __attribute__((always_inline)) void Compare(Fours<Key>& fours, Key prune) {
  const auto& k = fours.keys;
  for (int64_t i = 0; i < kPlaces; ++i) {
    const Key a = k[0][i], b = k[1][i], c = k[2][i], d = k[3][i];
    const Key ab = a > b, ac = a > c, ad = a > d, bc = b > c, bd = b > d, cd = c > d;
    // How many go before each: of equal ones the lower index does.
    const Key before[4] = {static_cast<Key>(ab + ac + ad), static_cast<Key>(1 - ab + bc + bd),
                           static_cast<Key>(2 - ac - bc + cd), static_cast<Key>(3 - ad - bd - cd)};
    for (int j = 0; j < 4; ++j) {
      fours.flags[j][i] = static_cast<uint8_t>((before[j] >= prune) & (k[j][i] >= 0));
    }
  }
}

// The groups of four of `count` consecutive ones, whose channels have `inner` places each.
template <class T>
inline __attribute__((always_inline)) void FlagFours(const void* weight, const uint8_t* previous,
                                                     int64_t first, int64_t count, int64_t inner,
                                                     int64_t prune, uint8_t* flags) {
  using Key = typename Magnitude<T>::Key;
  Fours<Key> fours;
  std::memset(&fours, 0, sizeof fours);
  const int64_t at_once = std::max<int64_t>(1, kPlaces / inner);  // groups
  const int64_t strip = std::min(inner, kPlaces);                 // places of one
  for (int64_t group = 0; group < count; group += at_once) {
    const int64_t groups = std::min(at_once, count - group);
    for (int64_t place = 0; place < inner; place += strip) {
      const int64_t places = std::min(strip, inner - place);
      const int64_t begin = first + group * 4 * inner + place;
      if (inner == 1) {
        for (int64_t g = 0; g < groups; ++g) {
          for (int64_t c = 0; c < 4; ++c) fours.keys[c][g] = KeyAt<T>(weight, begin + 4 * g + c);
        }
      } else {
        for (int64_t g = 0; g < groups; ++g) {
          for (int64_t c = 0; c < 4; ++c) {
            const int64_t from = begin + (4 * g + c) * inner;
            for (int64_t i = 0; i < places; ++i) {
              fours.keys[c][g * places + i] = KeyAt<T>(weight, from + i);
            }
          }
        }
      }
      if (previous != nullptr) {
        for (int64_t g = 0; g < groups; ++g) {
          for (int64_t c = 0; c < 4; ++c) {
            for (int64_t i = 0; i < places; ++i) {
              const int64_t at = begin + (4 * g + c) * inner + i;
              if (!BitAt(previous, at)) fours.keys[c][g * places + i] = -1;
            }
          }
        }
      }
      Compare(fours, static_cast<Key>(prune));
      if (inner == 1) {
        for (int64_t g = 0; g < groups; ++g) {
          for (int64_t c = 0; c < 4; ++c) flags[begin + 4 * g + c] = fours.flags[c][g];
        }
      } else {
        for (int64_t g = 0; g < groups; ++g) {
          for (int64_t c = 0; c < 4; ++c) {
            std::memcpy(flags + begin + (4 * g + c) * inner, fours.flags[c] + g * places,
                        static_cast<size_t>(places));
          }
        }
      }
    }
  }
}

template <class T>
using FoursFunction = void (*)(const void*, const uint8_t*, int64_t, int64_t, int64_t, int64_t,
                               uint8_t*);

template <class T>
void PortableFours(const void* weight, const uint8_t* previous, int64_t first, int64_t count,
                   int64_t inner, int64_t prune, uint8_t* flags) {
  FlagFours<T>(weight, previous, first, count, inner, prune, flags);
}

#if defined(__x86_64__)
template <class T>
__attribute__((target("avx2"))) void Avx2Fours(const void* weight, const uint8_t* previous,
                                               int64_t first, int64_t count, int64_t inner,
                                               int64_t prune, uint8_t* flags) {
  FlagFours<T>(weight, previous, first, count, inner, prune, flags);
}
#endif

template <class T>
FoursFunction<T> CurrentFours() {
#if defined(__x86_64__)
  if (CurrentIsa() != Isa::kPortable) return Avx2Fours<T>;
#endif
  return PortableFours<T>;
}

template <class T>
void Flag(const void* weight, const Channels& channels, int64_t n, int64_t m,
          const uint8_t* previous, uint8_t* flags) {
  const int64_t outer_size = channels.channels * channels.inner;
  const int64_t grain = std::max<int64_t>(1, kGrain / outer_size);
  const FoursFunction<T> flag = CurrentFours<T>();
  ParallelFor(channels.outer, grain, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      int64_t c = 0;
      if (m == 4) {
        flag(weight, previous, o * outer_size, channels.channels / 4, channels.inner, 4 - n, flags);
        c = channels.channels / 4 * 4;
      }
      for (; c < channels.channels; c += m) {
        const int64_t size = std::min(m, channels.channels - c);
        FlagGroup<T>(weight, previous, o * outer_size + c * channels.inner, size, channels.inner,
                     size - std::min(n, size), flags);
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
          kept += BitAt(bits, at);
        }
        if (kept > n) return false;
      }
    }
  }
  return true;
}

}  // namespace nni_compression::compression
