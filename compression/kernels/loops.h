// The hot loops, compiled once for each instruction set.
#ifndef NNI_COMPRESSION_COMPRESSION_KERNELS_LOOPS_H_
#define NNI_COMPRESSION_COMPRESSION_KERNELS_LOOPS_H_

#include <cstdint>
#include <type_traits>
#include <vector>

#include "compression/kernels/range.h"
#include "compression/types/dtype.h"
#include "compression/types/quantization.h"

namespace nni_compression::compression {

// Loops over magnitudes: see magnitude.h for keys. They read each element a few times and accept
// any bits, so that a weight that changes during the loop is harmless.
template <class Key>
struct ScanLoops {
  // What is scanned, and for which keys. The candidates are the elements that `previous` keeps.
  struct Scan {
    const void* weight = nullptr;
    int64_t elements = 0;
    const uint8_t* previous = nullptr;  // a packed mask; null: all are candidates
    Key lo = 0;                         // keys in [lo, hi) are "inside"
    Key hi = 0;
  };

  // A candidate inside.
  struct Found {
    Key key;
    int64_t index;
  };

  static constexpr int kBucketBits = 12;
  static constexpr int64_t kBuckets = int64_t{1} << kBucketBits;

  // (key - lo) >> shift, limited to the last bucket, since a key may have changed since it was
  // compared.
  static int64_t BucketOf(Key key, Key lo, int shift) {
    using Unsigned = std::make_unsigned_t<Key>;
    constexpr Unsigned kLast = kBuckets - 1;
    const auto bucket = static_cast<Unsigned>(static_cast<Unsigned>(key - lo) >> shift);
    return bucket < kLast ? bucket : kLast;
  }

  // Of the elements [begin, end), begin being a multiple of 64: returns how many candidates are
  // below lo, adds those inside to counts[BucketOf(key, lo, shift)], and raises `largest` to the
  // largest key, candidate or not.
  int64_t (*count)(const Scan& scan, int64_t begin, int64_t end, int shift, uint32_t* counts,
                   Key& largest);

  // The counts of `pack`.
  struct Counts {
    int64_t below = 0;   // candidates below lo
    int64_t inside = 0;  // candidates inside
    int64_t found = 0;   // of these, the ones that fitted into `found`
  };

  // Of the same elements, writes the mask that keeps the candidates from lo on, and those inside to
  // `found`: all, or those of so many words as fit into its room.
  Counts (*pack)(const Scan& scan, int64_t begin, int64_t end, uint8_t* bits, Found* found,
                 int64_t room, Key& largest);
};

// The smallest and the largest of some numbers.
struct Bounds {
  float minimum;
  float maximum;
  bool bad;  // there is a NaN or an infinity

  static Bounds None();
  void Add(const Bounds& other);
};

struct Loops {
  ScanLoops<int16_t> scan16;
  ScanLoops<int32_t> scan32;
  ScanLoops<int64_t> scan64;

  int64_t (*count_ones)(const uint8_t* bytes, int64_t size);

  // One byte, 0 or 1, for each of the bits [begin, begin + count).
  void (*unpack)(const uint8_t* bits, int64_t begin, int64_t count, uint8_t* out);

  // Of the weights [begin, begin + count), as float32.
  Bounds (*bounds)(DataType dtype, const void* weight, int64_t begin, int64_t count);

  // Adds the i-th of the same weights to bounds[i].
  void (*add_each)(DataType dtype, const void* weight, int64_t begin, int64_t count,
                   Bounds* bounds);

  // Quantizes the weights [begin, end) as QuantizeTo does.
  void (*quantize)(DataType dtype, const void* weight, const Channels& channels,
                   const QuantizationParameters& parameters, QuantizeReply reply, float max_tanh,
                   int64_t begin, int64_t end, void* out);

  template <class Key>
  const ScanLoops<Key>& scan() const {
    if constexpr (sizeof(Key) == 2) {
      return scan16;
    } else if constexpr (sizeof(Key) == 4) {
      return scan32;
    } else {
      return scan64;
    }
  }
};

// Of CurrentIsa().
const Loops& CurrentLoops();

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_KERNELS_LOOPS_H_
