// Counts and sums of magnitudes by ranges of their keys (magnitude.h has keys).
#ifndef NNI_COMPRESSION_COMPRESSION_KERNELS_COUNT_H_
#define NNI_COMPRESSION_COMPRESSION_KERNELS_COUNT_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "compression/kernels/parallel.h"
#include "compression/types/dtype.h"

namespace nni_compression::compression {

// The most ranges that a pass over a weight can tell apart.
constexpr int64_t kMaxKeyRanges = 4096;

struct CountArguments {
  DataType dtype = DataType::kFloat32;  // of a weight
  const void* weight = nullptr;
  int64_t elements = 0;               // at least 1
  const uint8_t* previous = nullptr;  // a packed mask: only what it keeps counts; null: everything

  // Keys in [lo, hi) are counted, in ranges of 2^shift from lo on, at most kMaxKeyRanges.
  int64_t lo = 0;
  int64_t hi = 0;
  int shift = 0;

  int64_t grain = kGrain;  // elements that are worth a thread; a multiple of 64
};

struct KeyCounts {
  std::vector<int64_t> counts;  // by range
  int64_t below = 0;            // keys below lo
  int64_t largest = 0;          // key of any element, counted or not
};

// The magnitudes in ranges of keys, in units of 2^exponent.
struct KeySums {
  struct Range {
    int64_t count = 0;
    double sum = 0;     // of magnitudes
    double square = 0;  // of their squares
  };
  std::vector<Range> ranges;
  int exponent = 0;
  int64_t largest = 0;  // key of any element, counted or not
};

// The first key that is not a finite number's: all of them are in [0, KeyEnd).
int64_t KeyEnd(DataType dtype);
// Bits of a key that have one exponent: ranges of at most 2^MantissaBits keys, aligned, do.
int MantissaBits(DataType dtype);
// The magnitude with that key.
double KeyValue(DataType dtype, int64_t key);

// Both use several threads, and their results do not depend on how many.
KeyCounts CountMagnitudes(const CountArguments& arguments);

// The sums, too. `shift` is at most MantissaBits(dtype), `lo` a multiple of 2^shift. Exact but for
// a few roundings to double. Without `exponent`, that of the largest magnitude, with which no
// square overflows. Meaningless unless all elements are finite.
KeySums SumMagnitudes(const CountArguments& arguments, std::optional<int> exponent = std::nullopt);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_KERNELS_COUNT_H_
