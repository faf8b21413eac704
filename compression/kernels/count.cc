#include "compression/kernels/count.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>

#include "compression/kernels/dispatch.h"
#include "compression/kernels/loops.h"
#include "compression/kernels/magnitude.h"
#include "compression/kernels/words.h"

namespace nni_compression::compression {
namespace {

// Counters of one thread have 32 bits, so they are added up before they can overflow.
constexpr int64_t kFlush = int64_t{1} << 31;

template <class T>
constexpr int kMantissaBits = 23;
template <>
constexpr int kMantissaBits<c10::Half> = 10;
template <>
constexpr int kMantissaBits<c10::BFloat16> = 7;
template <>
constexpr int kMantissaBits<double> = 52;

template <class T>
double ValueOf(typename Magnitude<T>::Key key) {
  T value;
  std::memcpy(&value, &key, sizeof value);
  return static_cast<double>(value);
}

template <class T>
KeyCounts Count(const CountArguments& a) {
  using Key = typename Magnitude<T>::Key;
  const auto& loops = CurrentLoops().scan<Key>();
  const typename ScanLoops<Key>::Scan scan{a.weight, a.elements, a.previous, static_cast<Key>(a.lo),
                                           static_cast<Key>(a.hi)};
  KeyCounts result;
  result.counts.resize(((a.hi - a.lo - 1) >> a.shift) + 1);
  std::mutex mutex;
  ParallelFor(a.elements, a.grain, [&](int64_t begin, int64_t end) {
    // The loop may write beyond the last range when a key changes after it was compared.
    std::vector<uint32_t> mine(ScanLoops<Key>::kBuckets);
    for (int64_t b = begin; b < end; b += kFlush) {
      std::fill(mine.begin(), mine.end(), 0);
      Key largest = 0;
      const int64_t less =
          loops.count(scan, b, std::min(end, b + kFlush), a.shift, mine.data(), largest);
      std::lock_guard<std::mutex> lock(mutex);
      result.below += less;
      for (size_t i = 0; i < result.counts.size(); ++i) result.counts[i] += mine[i];
      result.largest = std::max<int64_t>(result.largest, largest);
    }
  });
  return result;
}

// The sums over a range of keys, all with one exponent, as integers: the order of additions does
// not change them. `low` is the distance from the range's begin.
struct Exact {
  uint64_t count = 0;
  unsigned __int128 low = 0;
  unsigned __int128 low_square = 0;
  uint64_t carries = 0;  // out of low_square

  void Add(const Exact& other) {
    count += other.count;
    low += other.low;
    low_square += other.low_square;
    carries += other.carries + (low_square < other.low_square);
  }
};

template <class T>
KeySums::Range Rounded(const Exact& exact, int64_t first_key, int exponent) {
  using Key = typename Magnitude<T>::Key;
  KeySums::Range range;
  if (exact.count == 0) return range;  // the unit of other exponents may overflow
  // A magnitude is (head + low) units.
  const double first = ValueOf<T>(static_cast<Key>(first_key));
  // Of the exponent's first two keys, since the last key of all has no finite one behind it.
  const int64_t begin = first_key >> kMantissaBits<T> << kMantissaBits<T>;
  const double ulp = ValueOf<T>(static_cast<Key>(begin + 1)) - ValueOf<T>(static_cast<Key>(begin));
  const double head = first / ulp;
  const double unit = std::ldexp(ulp, -exponent);
  const auto count = static_cast<double>(exact.count);
  const auto low = static_cast<double>(exact.low);
  const double low_square =
      std::ldexp(static_cast<double>(exact.carries), 128) + static_cast<double>(exact.low_square);
  range.count = static_cast<int64_t>(exact.count);
  range.sum = (head * count + low) * unit;
  range.square = (head * head * count + 2 * head * low + low_square) * unit * unit;
  return range;
}

template <class T>
KeySums Sum(const CountArguments& a, std::optional<int> exponent) {
  using Key = typename Magnitude<T>::Key;
  const size_t ranges = static_cast<size_t>((a.hi - a.lo - 1) >> a.shift) + 1;
  const auto lo = static_cast<Key>(a.lo);
  const auto hi = static_cast<Key>(a.hi);
  const auto mask = static_cast<Key>((uint64_t{1} << a.shift) - 1);
  std::vector<Exact> total(ranges);
  std::mutex mutex;
  KeySums sums;
  ParallelFor(a.elements, a.grain, [&](int64_t begin, int64_t end) {
    std::vector<Exact> mine(ranges);
    Key most = 0;
    for (int64_t i = begin; i < end; ++i) {
      const Key key = KeyAt<T>(a.weight, i);
      most = std::max(most, key);
      if (key < lo || key >= hi) continue;
      if (a.previous != nullptr && !BitAt(a.previous, i)) continue;
      const auto distance = static_cast<Key>(key - lo);
      Exact& range = mine[static_cast<size_t>(distance >> a.shift)];
      const auto low = static_cast<uint64_t>(static_cast<Key>(distance & mask));
      const auto square = static_cast<unsigned __int128>(low) * low;
      ++range.count;
      range.low += low;
      range.low_square += square;
      // Of smaller types, the squares of 2^48 weights fit.
      if constexpr (sizeof(Key) > sizeof(int32_t)) range.carries += range.low_square < square;
    }
    std::lock_guard<std::mutex> lock(mutex);
    sums.largest = std::max<int64_t>(sums.largest, most);
    for (size_t r = 0; r < ranges; ++r) total[r].Add(mine[r]);
  });
  const double top = ValueOf<T>(static_cast<Key>(sums.largest));
  sums.exponent = exponent.value_or(top > 0 && std::isfinite(top) ? std::ilogb(top) : 0);
  sums.ranges.reserve(ranges);
  for (size_t r = 0; r < ranges; ++r) {
    sums.ranges.push_back(
        Rounded<T>(total[r], a.lo + (static_cast<int64_t>(r) << a.shift), sums.exponent));
  }
  return sums;
}

}  // namespace

int64_t KeyEnd(DataType dtype) {
  return DispatchWeight(
      dtype, [](auto tag) { return int64_t{Magnitude<typename decltype(tag)::Type>::kNonFinite}; });
}

int MantissaBits(DataType dtype) {
  return DispatchWeight(dtype,
                        [](auto tag) { return kMantissaBits<typename decltype(tag)::Type>; });
}

double KeyValue(DataType dtype, int64_t key) {
  return DispatchWeight(dtype, [key](auto tag) {
    using T = typename decltype(tag)::Type;
    return ValueOf<T>(static_cast<typename Magnitude<T>::Key>(key));
  });
}

KeyCounts CountMagnitudes(const CountArguments& arguments) {
  return DispatchWeight(arguments.dtype,
                        [&](auto tag) { return Count<typename decltype(tag)::Type>(arguments); });
}

KeySums SumMagnitudes(const CountArguments& arguments, std::optional<int> exponent) {
  return DispatchWeight(arguments.dtype, [&](auto tag) {
    return Sum<typename decltype(tag)::Type>(arguments, exponent);
  });
}

}  // namespace nni_compression::compression
