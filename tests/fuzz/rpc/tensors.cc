#include "tests/fuzz/rpc/tensors.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace nni_compression::fuzz {
namespace {

using ::nni::compression::v1::DataType;

// Bit patterns of float16 and bfloat16: 1, -1, 0, -0, the largest, the smallest, NaN, infinity.
const std::vector<uint16_t> kHalves = {0x3c00, 0xbc00, 0,      0x8000, 0x7bff,
                                       0xfbff, 1,      0x7e00, 0x7c00};
const std::vector<uint16_t> kBfloats = {0x3f80, 0xbf80, 0,      0x8000, 0x7f7f,
                                        0xff7f, 1,      0x7fc0, 0x7f80};

// One number, by its place in `kind`'s distribution.
template <typename T>
T FloatOf(int kind, Random& random) {
  using Limits = std::numeric_limits<T>;
  static const std::vector<T> extremes = {0,
                                          static_cast<T>(-0.0),
                                          1,
                                          -1,
                                          Limits::max(),
                                          Limits::lowest(),
                                          Limits::min(),
                                          Limits::denorm_min()};
  switch (kind) {
    case 0:
      return 0;
    case 1:
      return random.OneIn(2) ? T{1} : T{-1};
    case 2:
      return random.Pick(extremes);
    case 3:
      return random.OneIn(10) ? static_cast<T>(NAN) : T{1};
    default:
      return static_cast<T>(random.Unit() * 2 - 1);
  }
}

uint16_t HalfOf(int kind, const std::vector<uint16_t>& extremes, Random& random) {
  switch (kind) {
    case 0:
      return 0;
    case 1:
      return extremes[random.Below(2)];
    case 2:
      return extremes[random.Below(7)];
    case 3:
      return random.Pick(extremes);
    default:
      // Around 1, with all fractions.
      return static_cast<uint16_t>(extremes[random.Below(2)] ^ random.Below(1 << 7));
  }
}

}  // namespace

uint64_t ByteLength(DataType dtype, int64_t elements) {
  const auto n = static_cast<uint64_t>(elements);
  switch (dtype) {
    using namespace nni::compression::v1;  // NOLINT(google-build-using-namespace)
    case DATA_TYPE_FLOAT64:
    case DATA_TYPE_INT64:
      return 8 * n;
    case DATA_TYPE_FLOAT32:
    case DATA_TYPE_INT32:
      return 4 * n;
    case DATA_TYPE_FLOAT16:
    case DATA_TYPE_BFLOAT16:
    case DATA_TYPE_UINT16:
    case DATA_TYPE_INT16:
      return 2 * n;
    case DATA_TYPE_BIT:
      return (n + 7) / 8;
    default:
      return n;
  }
}

std::string Payload(DataType dtype, int64_t elements, Random& random) {
  std::string bytes(ByteLength(dtype, elements), '\0');
  const int kind = static_cast<int>(random.Below(8));
  const auto fill = [&](auto next) {
    for (size_t at = 0; at < bytes.size(); at += sizeof(next())) {
      const auto value = next();
      std::memcpy(&bytes[at], &value, sizeof(value));
    }
  };
  switch (dtype) {
    case nni::compression::v1::DATA_TYPE_FLOAT32:
      fill([&] { return FloatOf<float>(kind, random); });
      break;
    case nni::compression::v1::DATA_TYPE_FLOAT64:
      fill([&] { return FloatOf<double>(kind, random); });
      break;
    case nni::compression::v1::DATA_TYPE_FLOAT16:
      fill([&] { return HalfOf(kind, kHalves, random); });
      break;
    case nni::compression::v1::DATA_TYPE_BFLOAT16:
      fill([&] { return HalfOf(kind, kBfloats, random); });
      break;
    default:
      bytes = random.Bytes(bytes.size());
      // Bits after the last element are 0.
      if (dtype == nni::compression::v1::DATA_TYPE_BIT && elements % 8 != 0 && !random.OneIn(8)) {
        bytes.back() = static_cast<char>(bytes.back() & ((1 << (elements % 8)) - 1));
      }
  }
  return bytes;
}

}  // namespace nni_compression::fuzz
