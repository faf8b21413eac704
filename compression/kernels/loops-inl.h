// Included by loops.cc alone, several times: no include guard, and no includes. Functions are
// templates or in an unnamed namespace, and call nothing but each other, intrinsics, and what is
// inlined.
namespace nni_compression::compression::NNI_COMPRESSION_ISA {
namespace {

// Compares the keys of 64 elements with two limits, and keeps the largest key of all that it saw.
// Key by key it means: bit i of ge_lo is key[i] >= lo.
#if NNI_COMPRESSION_ISA_LEVEL == 2

template <class Key>
struct Comparer;

template <>
struct Comparer<int32_t> {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const __m512i lo, hi;
  __m512i largest = _mm512_setzero_si512();

  Comparer(int32_t lo, int32_t hi) : lo(_mm512_set1_epi32(lo)), hi(_mm512_set1_epi32(hi)) {}
  template <bool kTwo>
  void Compare(const char* p, uint64_t& ge_lo, uint64_t& ge_hi) {
    ge_lo = ge_hi = 0;
    for (int i = 0; i < 4; ++i) {
      const __m512i key = _mm512_and_si512(_mm512_loadu_si512(p + 64 * i), magnitude);
      largest = _mm512_max_epi32(largest, key);
      ge_lo |= uint64_t{_mm512_cmpge_epi32_mask(key, lo)} << (16 * i);
      if constexpr (kTwo) ge_hi |= uint64_t{_mm512_cmpge_epi32_mask(key, hi)} << (16 * i);
    }
  }
  int32_t Largest() const { return _mm512_reduce_max_epi32(largest); }
};

template <>
struct Comparer<int16_t> {
  const __m512i magnitude = _mm512_set1_epi16(0x7fff);
  const __m512i lo, hi;
  __m512i largest = _mm512_setzero_si512();

  Comparer(int16_t lo, int16_t hi) : lo(_mm512_set1_epi16(lo)), hi(_mm512_set1_epi16(hi)) {}
  template <bool kTwo>
  void Compare(const char* p, uint64_t& ge_lo, uint64_t& ge_hi) {
    ge_lo = ge_hi = 0;
    for (int i = 0; i < 2; ++i) {
      const __m512i key = _mm512_and_si512(_mm512_loadu_si512(p + 64 * i), magnitude);
      largest = _mm512_max_epi16(largest, key);
      ge_lo |= uint64_t{_mm512_cmpge_epi16_mask(key, lo)} << (32 * i);
      if constexpr (kTwo) ge_hi |= uint64_t{_mm512_cmpge_epi16_mask(key, hi)} << (32 * i);
    }
  }
  int16_t Largest() const {
    int16_t keys[32];
    _mm512_storeu_si512(keys, largest);
    int16_t found = 0;
    for (const int16_t key : keys) found = key > found ? key : found;
    return found;
  }
};

template <>
struct Comparer<int64_t> {
  const __m512i magnitude = _mm512_set1_epi64(0x7fffffffffffffff);
  const __m512i lo, hi;
  __m512i largest = _mm512_setzero_si512();

  Comparer(int64_t lo, int64_t hi) : lo(_mm512_set1_epi64(lo)), hi(_mm512_set1_epi64(hi)) {}
  template <bool kTwo>
  void Compare(const char* p, uint64_t& ge_lo, uint64_t& ge_hi) {
    ge_lo = ge_hi = 0;
    for (int i = 0; i < 8; ++i) {
      const __m512i key = _mm512_and_si512(_mm512_loadu_si512(p + 64 * i), magnitude);
      largest = _mm512_max_epi64(largest, key);
      ge_lo |= uint64_t{_mm512_cmpge_epi64_mask(key, lo)} << (8 * i);
      if constexpr (kTwo) ge_hi |= uint64_t{_mm512_cmpge_epi64_mask(key, hi)} << (8 * i);
    }
  }
  int64_t Largest() const { return _mm512_reduce_max_epi64(largest); }
};

#elif NNI_COMPRESSION_ISA_LEVEL == 1

// AVX2 compares for "greater" only, so limits are one less. They are not negative.
inline __m256i Load256(const char* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

template <class Key>
Key LargestOf(__m256i keys) {
  Key each[32 / sizeof(Key)];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(each), keys);
  Key found = 0;
  for (const Key key : each) found = key > found ? key : found;
  return found;
}

template <class Key>
struct Comparer;

template <>
struct Comparer<int32_t> {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  const __m256i lo, hi;
  __m256i largest = _mm256_setzero_si256();

  Comparer(int32_t lo, int32_t hi) : lo(_mm256_set1_epi32(lo - 1)), hi(_mm256_set1_epi32(hi - 1)) {}
  // Of 32 keys.
  static uint64_t Greater(const __m256i (&keys)[4], __m256i limit) {
    const __m256i low =
        _mm256_packs_epi32(_mm256_cmpgt_epi32(keys[0], limit), _mm256_cmpgt_epi32(keys[1], limit));
    const __m256i high =
        _mm256_packs_epi32(_mm256_cmpgt_epi32(keys[2], limit), _mm256_cmpgt_epi32(keys[3], limit));
    // Packing takes the halves of 128 bits in turns.
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high),
                                                      _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    return static_cast<uint32_t>(_mm256_movemask_epi8(bytes));
  }
  template <bool kTwo>
  void Compare(const char* p, uint64_t& ge_lo, uint64_t& ge_hi) {
    ge_lo = ge_hi = 0;
    for (int i = 0; i < 2; ++i) {
      __m256i keys[4];
      for (int j = 0; j < 4; ++j) {
        keys[j] = _mm256_and_si256(Load256(p + 128 * i + 32 * j), magnitude);
        largest = _mm256_max_epi32(largest, keys[j]);
      }
      ge_lo |= Greater(keys, lo) << (32 * i);
      if constexpr (kTwo) ge_hi |= Greater(keys, hi) << (32 * i);
    }
  }
  int32_t Largest() const { return LargestOf<int32_t>(largest); }
};

template <>
struct Comparer<int16_t> {
  const __m256i magnitude = _mm256_set1_epi16(0x7fff);
  const __m256i lo, hi;
  __m256i largest = _mm256_setzero_si256();

  Comparer(int16_t lo, int16_t hi)
      : lo(_mm256_set1_epi16(static_cast<int16_t>(lo - 1))),
        hi(_mm256_set1_epi16(static_cast<int16_t>(hi - 1))) {}
  // Of 32 keys.
  static uint64_t Greater(__m256i a, __m256i b, __m256i limit) {
    // Packing takes the halves of 128 bits in turns.
    const __m256i bytes =
        _mm256_packs_epi16(_mm256_cmpgt_epi16(a, limit), _mm256_cmpgt_epi16(b, limit));
    return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_permute4x64_epi64(bytes, 0xd8)));
  }
  template <bool kTwo>
  void Compare(const char* p, uint64_t& ge_lo, uint64_t& ge_hi) {
    ge_lo = ge_hi = 0;
    for (int i = 0; i < 2; ++i) {
      const __m256i a = _mm256_and_si256(Load256(p + 64 * i), magnitude);
      const __m256i b = _mm256_and_si256(Load256(p + 64 * i + 32), magnitude);
      largest = _mm256_max_epi16(largest, _mm256_max_epi16(a, b));
      ge_lo |= Greater(a, b, lo) << (32 * i);
      if constexpr (kTwo) ge_hi |= Greater(a, b, hi) << (32 * i);
    }
  }
  int16_t Largest() const { return LargestOf<int16_t>(largest); }
};

template <>
struct Comparer<int64_t> {
  const __m256i magnitude = _mm256_set1_epi64x(0x7fffffffffffffff);
  const __m256i lo, hi;
  __m256i largest = _mm256_setzero_si256();

  Comparer(int64_t lo, int64_t hi)
      : lo(_mm256_set1_epi64x(lo - 1)), hi(_mm256_set1_epi64x(hi - 1)) {}
  static uint64_t Greater(__m256i key, __m256i limit) {
    const __m256d above = _mm256_castsi256_pd(_mm256_cmpgt_epi64(key, limit));
    return static_cast<uint8_t>(_mm256_movemask_pd(above));
  }
  template <bool kTwo>
  void Compare(const char* p, uint64_t& ge_lo, uint64_t& ge_hi) {
    ge_lo = ge_hi = 0;
    for (int i = 0; i < 16; ++i) {
      const __m256i key = _mm256_and_si256(Load256(p + 32 * i), magnitude);
      largest = _mm256_blendv_epi8(largest, key, _mm256_cmpgt_epi64(key, largest));
      ge_lo |= Greater(key, lo) << (4 * i);
      if constexpr (kTwo) ge_hi |= Greater(key, hi) << (4 * i);
    }
  }
  int64_t Largest() const { return LargestOf<int64_t>(largest); }
};

#else

template <class Key>
struct Comparer {
  static constexpr Key kMagnitude = std::numeric_limits<Key>::max();
  static constexpr int kLanes = 16;
  const Key lo, hi;
  Key largest[kLanes] = {};

  Comparer(Key lo, Key hi) : lo(lo), hi(hi) {}
  template <bool kTwo>
  void Compare(const char* p, uint64_t& ge_lo, uint64_t& ge_hi) {
    Key keys[64];
    std::memcpy(keys, p, sizeof keys);
    for (int i = 0; i < 64; i += kLanes) {
      for (int j = 0; j < kLanes; ++j) {
        const Key key = keys[i + j] &= kMagnitude;
        largest[j] = key > largest[j] ? key : largest[j];
      }
    }
    ge_lo = Bits(keys, lo);
    ge_hi = kTwo ? Bits(keys, hi) : 0;
  }
  static uint64_t Bits(const Key* keys, Key limit) {
    uint8_t yes[64];
    for (int i = 0; i < 64; ++i) yes[i] = keys[i] >= limit;
    uint64_t word = 0;
    for (int g = 0; g < 8; ++g) {
      uint64_t bytes;
      std::memcpy(&bytes, yes + 8 * g, 8);
      // Moves the lowest bit of byte j to bit 56 + j.
      word |= (bytes * 0x0102040810204080u >> 56) << (8 * g);
    }
    return word;
  }
  Key Largest() const {
    Key found = 0;
    for (const Key key : largest) found = key > found ? key : found;
    return found;
  }
};

#endif

// Calls f(index, ge_lo, ge_hi, kept, keys) for each 64 elements of [begin, end): the bits of
// Comparer, the candidates, and the place of the elements. Elements past the end are not
// candidates.
template <bool kTwo, class Key, class F>
Key ForWords(const typename ScanLoops<Key>::Scan& scan, int64_t begin, int64_t end, const F& f) {
  Comparer<Key> comparer(scan.lo, scan.hi);
  const char* data = static_cast<const char*>(scan.weight);
  uint64_t ge_lo = 0;
  uint64_t ge_hi = 0;
  int64_t i = begin;
  for (; i + 64 <= end; i += 64) {
    const char* keys = data + i * static_cast<int64_t>(sizeof(Key));
    comparer.template Compare<kTwo>(keys, ge_lo, ge_hi);
    uint64_t kept = ~uint64_t{0};
    if (scan.previous != nullptr) std::memcpy(&kept, scan.previous + i / 8, 8);
    f(i, ge_lo, ge_hi, kept, keys);
  }
  if (i < end) {
    const int64_t size = end - i;
    char keys[64 * sizeof(Key)] = {};
    std::memcpy(keys, data + i * static_cast<int64_t>(sizeof(Key)), size * sizeof(Key));
    comparer.template Compare<kTwo>(keys, ge_lo, ge_hi);
    uint64_t kept = (uint64_t{1} << size) - 1;
    if (scan.previous != nullptr) {
      uint64_t previous = 0;
      std::memcpy(&previous, scan.previous + i / 8, (size + 7) / 8);
      kept &= previous;
    }
    f(i, ge_lo, ge_hi, kept, keys);
  }
  return comparer.Largest();
}

template <class Key>
Key KeyOf(const char* keys, int i) {
  Key key;
  std::memcpy(&key, keys + i * sizeof(Key), sizeof key);
  return key & std::numeric_limits<Key>::max();
}

template <class Key>
int64_t Count(const typename ScanLoops<Key>::Scan& scan, int64_t begin, int64_t end, int shift,
              uint32_t* counts, Key& largest) {
  const bool one_key = scan.hi - scan.lo <= 1;
  int64_t below = 0;
  uint32_t inside_one = 0;
  const Key seen = ForWords<true, Key>(
      scan, begin, end,
      [&](int64_t, uint64_t ge_lo, uint64_t ge_hi, uint64_t kept, const char* keys) {
        below += __builtin_popcountll(~ge_lo & kept);
        uint64_t inside = ge_lo & ~ge_hi & kept;
        if (one_key) {
          inside_one += static_cast<uint32_t>(__builtin_popcountll(inside));
          return;
        }
        for (; inside != 0; inside &= inside - 1) {
          const Key key = KeyOf<Key>(keys, __builtin_ctzll(inside));
          ++counts[ScanLoops<Key>::BucketOf(key, scan.lo, shift)];
        }
      });
  counts[0] += inside_one;
  if (seen > largest) largest = seen;
  return below;
}

template <class Key>
typename ScanLoops<Key>::Counts Pack(const typename ScanLoops<Key>::Scan& scan, int64_t begin,
                                     int64_t end, uint8_t* bits,
                                     typename ScanLoops<Key>::Found* found, int64_t room,
                                     Key& largest) {
  const auto store = [&](int64_t i, uint64_t word) {
    const int64_t left = end - i;
    std::memcpy(bits + i / 8, &word, left >= 64 ? 8 : (left + 7) / 8);
  };
  typename ScanLoops<Key>::Counts counts;
  Key seen = 0;
  if (scan.lo == scan.hi) {
    seen = ForWords<false, Key>(
        scan, begin, end, [&](int64_t i, uint64_t ge_lo, uint64_t, uint64_t kept, const char*) {
          counts.below += __builtin_popcountll(~ge_lo & kept);
          store(i, ge_lo & kept);
        });
  } else {
    auto* next = found;
    seen = ForWords<true, Key>(
        scan, begin, end,
        [&](int64_t i, uint64_t ge_lo, uint64_t ge_hi, uint64_t kept, const char* keys) {
          counts.below += __builtin_popcountll(~ge_lo & kept);
          store(i, ge_lo & kept);
          uint64_t inside = ge_lo & ~ge_hi & kept;
          const int64_t size = __builtin_popcountll(inside);
          counts.inside += size;
          if (size > room - (next - found)) return;
          for (; inside != 0; inside &= inside - 1) {
            const int j = __builtin_ctzll(inside);
            *next++ = {KeyOf<Key>(keys, j), i + j};
          }
        });
    counts.found = next - found;
  }
  if (seen > largest) largest = seen;
  return counts;
}

int64_t CountOnes(const uint8_t* bytes, int64_t size) {
  int64_t ones = 0;
  int64_t i = 0;
  for (; i + 8 <= size; i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes + i, 8);
    ones += __builtin_popcountll(word);
  }
  for (; i < size; ++i) ones += __builtin_popcountll(bytes[i]);
  return ones;
}

void Unpack(const uint8_t* bits, int64_t begin, int64_t count, uint8_t* out) {
  int64_t i = 0;
  for (; i < count && (begin + i) % 8 != 0; ++i) {
    out[i] = (bits[(begin + i) >> 3] >> ((begin + i) & 7)) & 1;
  }
  for (; i + 8 <= count; i += 8) {
    // Each byte of the product has all eight bits; one of them is left in each.
    const uint64_t spread = bits[(begin + i) >> 3] * 0x0101010101010101u & 0x8040201008040201u;
    const uint64_t ones = (spread + 0x7f7f7f7f7f7f7f7fu) >> 7 & 0x0101010101010101u;
    std::memcpy(out + i, &ones, 8);
  }
  for (; i < count; ++i) out[i] = (bits[(begin + i) >> 3] >> ((begin + i) & 7)) & 1;
}

#include "compression/kernels/values-inl.h"

}  // namespace

const Loops kLoops = {
    {Count<int16_t>, Pack<int16_t>},
    {Count<int32_t>, Pack<int32_t>},
    {Count<int64_t>, Pack<int64_t>},
    CountOnes,
    Unpack,
    BoundsOf,
    AddEach,
    Quantize,
};

}  // namespace nni_compression::compression::NNI_COMPRESSION_ISA
