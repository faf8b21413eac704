// Packed bits in words of 64. Like the masks' layout, this assumes a little-endian machine.
#ifndef NNI_COMPRESSION_COMPRESSION_KERNELS_WORDS_H_
#define NNI_COMPRESSION_COMPRESSION_KERNELS_WORDS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace nni_compression::compression {

// The lowest `count` bits, 0 to 64.
inline uint64_t LowBits(int64_t count) {
  return count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
}

// The bit of element `i`.
inline bool BitAt(const uint8_t* bits, int64_t i) { return (bits[i >> 3] >> (i & 7) & 1) != 0; }

// How many elements the word that begins at element `i` has.
inline int64_t WordSize(int64_t i, int64_t elements) { return std::min<int64_t>(64, elements - i); }

// The word that begins at element `i`, a multiple of 64.
inline uint64_t LoadWord(const uint8_t* bits, int64_t i, int64_t elements) {
  uint64_t word = 0;
  std::memcpy(&word, bits + i / 8, (WordSize(i, elements) + 7) / 8);
  return word;
}

inline void StoreWord(uint8_t* bits, int64_t i, int64_t elements, uint64_t word) {
  std::memcpy(bits + i / 8, &word, (WordSize(i, elements) + 7) / 8);
}

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_KERNELS_WORDS_H_
