// Magnitudes as integers: the bits of a float without its sign order as |w| does, -0.0 equals 0.0,
// and infinities and NaNs come after all finite numbers. 16-bit floats order like their widened
// values.
#ifndef NNI_COMPRESSION_COMPRESSION_KERNELS_MAGNITUDE_H_
#define NNI_COMPRESSION_COMPRESSION_KERNELS_MAGNITUDE_H_

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>

namespace nni_compression::compression {

// Key: a signed integer, since SSE2 compares no unsigned ones. kBits: how many of its bits a
// magnitude uses. kNonFinite: the smallest key that is not a finite number.
template <class T>
struct Magnitude;

template <>
struct Magnitude<float> {
  using Key = int32_t;
  static constexpr int kBits = 31;
  static constexpr Key kNonFinite = 0x7f800000;
};

template <>
struct Magnitude<c10::Half> {
  using Key = int16_t;
  static constexpr int kBits = 15;
  static constexpr Key kNonFinite = 0x7c00;
};

template <>
struct Magnitude<c10::BFloat16> {
  using Key = int16_t;
  static constexpr int kBits = 15;
  static constexpr Key kNonFinite = 0x7f80;
};

template <>
struct Magnitude<double> {
  using Key = int64_t;
  static constexpr int kBits = 63;
  static constexpr Key kNonFinite = int64_t{0x7ff0} << 48;
};

// The magnitude of element i of `data`, whatever its alignment.
template <class T>
inline typename Magnitude<T>::Key KeyAt(const void* data, int64_t i) {
  using Key = typename Magnitude<T>::Key;
  Key bits;
  std::memcpy(&bits, static_cast<const char*>(data) + i * static_cast<int64_t>(sizeof(Key)),
              sizeof bits);
  constexpr auto kMask = static_cast<Key>((uint64_t{1} << Magnitude<T>::kBits) - 1);
  return static_cast<Key>(bits & kMask);
}

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_KERNELS_MAGNITUDE_H_
