#include "compression/kernels/select.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

#include "absl/numeric/bits.h"
#include "compression/kernels/dispatch.h"
#include "compression/kernels/finite.h"
#include "compression/kernels/magnitude.h"
#include "compression/kernels/parallel.h"
#include "compression/kernels/words.h"

namespace nni_compression::compression {
namespace {

constexpr int kDigitBits = 16;
// Counters of one thread have 32 bits, so they are added up before they can overflow.
constexpr int64_t kFlush = int64_t{1} << 31;
// The search for the last tie keeps one counter per block, at most this many.
constexpr int64_t kTieBlocks = int64_t{1} << 16;

// Elements before `cut` are pruned below or at the threshold key, those after only below it.
template <class Key>
struct Threshold {
  Key before;  // prune when key < before
  Key after;
  int64_t cut = 0;
};

template <class T>
class Selector {
 public:
  using Key = typename Magnitude<T>::Key;

  explicit Selector(const SelectArguments& arguments) : a_(arguments) {}

  bool Run(uint8_t* bits) const {
    const int64_t rank = a_.prune - a_.previously_pruned;
    const bool nothing = rank <= 0;
    const bool everything = a_.prune >= a_.elements;
    // Otherwise the first histogram sees every element, and tells.
    if (nothing || everything || a_.previous != nullptr) {
      if (!AllFinite(a_.dtype, a_.weight, a_.elements)) return false;
    }
    Threshold<Key> threshold{0, 0};
    if (everything) {
      threshold = {Magnitude<T>::kNonFinite, Magnitude<T>::kNonFinite};
    } else if (!nothing && !FindThreshold(rank, &threshold)) {
      return false;
    }
    Pack(threshold, bits);
    return true;
  }

 private:
  uint64_t KeptWord(int64_t i) const {
    return a_.previous == nullptr ? LowBits(WordSize(i, a_.elements))
                                  : LoadWord(a_.previous, i, a_.elements);
  }

  // The key of the rank-th smallest candidate, and where the last of its ties to be pruned is.
  bool FindThreshold(int64_t rank, Threshold<Key>* threshold) const {
    int width = std::min(kDigitBits, Magnitude<T>::kBits);
    int shift = Magnitude<T>::kBits - width;
    Key prefix = 0;
    while (true) {
      const bool first = shift + width == Magnitude<T>::kBits;
      const std::vector<int64_t> counts = Histogram(first, prefix, shift, width);
      if (first) {
        const auto bad = static_cast<size_t>(Magnitude<T>::kNonFinite >> shift);
        for (size_t b = bad; b < counts.size(); ++b) {
          if (counts[b] != 0) return false;
        }
      }
      size_t bucket = 0;
      while (bucket + 1 < counts.size() && rank > counts[bucket]) rank -= counts[bucket++];
      prefix = static_cast<Key>((static_cast<int64_t>(prefix) << width) | bucket);
      const Key above = static_cast<Key>((static_cast<int64_t>(prefix) + 1) << shift);
      if (rank >= counts[bucket]) {
        *threshold = {above, above};  // the whole bucket goes
        return true;
      }
      if (shift == 0) {
        *threshold = {above, prefix, FindTie(prefix, rank) + 1};
        return true;
      }
      width = std::min(kDigitBits, shift);
      shift -= width;
    }
  }

  // Counts of the `width` bits above `shift`, among the candidates whose bits above those are
  // `prefix`.
  std::vector<int64_t> Histogram(bool first, Key prefix, int shift, int width) const {
    std::vector<int64_t> total(size_t{1} << width);
    std::mutex mutex;
    ParallelFor(a_.elements, kGrain, [&](int64_t begin, int64_t end) {
      std::vector<uint32_t> counts(total.size());
      for (int64_t b = begin; b < end; b += kFlush) {
        std::fill(counts.begin(), counts.end(), 0);
        const int64_t e = std::min(end, b + kFlush);
        if (first) {
          CountFirst(b, e, shift, counts.data());
        } else {
          CountWithin(b, e, prefix, shift, width, counts.data());
        }
        std::lock_guard<std::mutex> lock(mutex);
        for (size_t i = 0; i < counts.size(); ++i) total[i] += counts[i];
      }
    });
    return total;
  }

  void CountFirst(int64_t begin, int64_t end, int shift, uint32_t* counts) const {
    if (a_.previous == nullptr) {
      for (int64_t i = begin; i < end; ++i) ++counts[KeyAt<T>(a_.weight, i) >> shift];
      return;
    }
    for (int64_t i = begin; i < end; i += 64) {
      for (uint64_t kept = KeptWord(i); kept != 0; kept &= kept - 1) {
        ++counts[KeyAt<T>(a_.weight, i + absl::countr_zero(kept)) >> shift];
      }
    }
  }

  void CountWithin(int64_t begin, int64_t end, Key prefix, int shift, int width,
                   uint32_t* counts) const {
    const auto digit_mask = static_cast<Key>((int64_t{1} << width) - 1);
    const int above = shift + width;
    for (int64_t i = begin; i < end; i += 64) {
      uint64_t within = Where(i, [=](Key key) { return (key >> above) == prefix; }) & KeptWord(i);
      for (; within != 0; within &= within - 1) {
        ++counts[(KeyAt<T>(a_.weight, i + absl::countr_zero(within)) >> shift) & digit_mask];
      }
    }
  }

  // The flat index of the rank-th candidate with this key, rank >= 1.
  int64_t FindTie(Key key, int64_t rank) const {
    const int64_t block = std::max(kGrain / 16, (a_.elements / kTieBlocks + 64) / 64 * 64);
    std::vector<int64_t> ties((a_.elements + block - 1) / block);
    ParallelFor(a_.elements, std::max(block, kGrain / block * block),
                [&](int64_t begin, int64_t end) {
                  for (int64_t i = begin; i < end; i += 64) {
                    ties[i / block] += absl::popcount(EqualWord(i, key));
                  }
                });
    size_t b = 0;
    while (b + 1 < ties.size() && rank > ties[b]) rank -= ties[b++];
    const int64_t end = std::min<int64_t>(a_.elements, (b + 1) * block);
    for (int64_t i = b * block; i < end; i += 64) {
      uint64_t equal = EqualWord(i, key);
      if (rank > absl::popcount(equal)) {
        rank -= absl::popcount(equal);
        continue;
      }
      for (; rank > 1; --rank) equal &= equal - 1;
      return i + absl::countr_zero(equal);
    }
    return end - 1;
  }

  // Candidates of the word at i whose key is `key`.
  uint64_t EqualWord(int64_t i, Key key) const {
    return Where(i, [=](Key other) { return other == key; }) & KeptWord(i);
  }

  // Elements of the word at i whose key is not below `limit`.
  uint64_t LargeWord(int64_t i, Key limit) const {
    return Where(i, [=](Key key) { return key >= limit; });
  }

  // A bit per element of the word at i: whether its key satisfies `holds`. Compilers make vector
  // instructions of the full word's loop.
  template <class Predicate>
  uint64_t Where(int64_t i, Predicate holds) const {
    const int64_t size = WordSize(i, a_.elements);
    alignas(64) uint8_t yes[64] = {};
    if (size == 64) {
      for (int64_t j = 0; j < 64; ++j) yes[j] = holds(KeyAt<T>(a_.weight, i + j));
    } else {
      for (int64_t j = 0; j < size; ++j) yes[j] = holds(KeyAt<T>(a_.weight, i + j));
    }
    uint64_t word = 0;
    for (int g = 0; g < 8; ++g) {
      uint64_t bytes;
      std::memcpy(&bytes, yes + 8 * g, 8);
      // Moves the lowest bit of byte j to bit 56 + j.
      word |= (bytes * 0x0102040810204080u >> 56) << (8 * g);
    }
    return word;
  }

  void Pack(const Threshold<Key>& threshold, uint8_t* bits) const {
    ParallelFor(a_.elements, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i += 64) {
        uint64_t word = LargeWord(i, i < threshold.cut ? threshold.before : threshold.after);
        if (i < threshold.cut && threshold.cut < i + 64) {
          const uint64_t before = LowBits(threshold.cut - i);
          word = (word & before) | (LargeWord(i, threshold.after) & ~before);
        }
        StoreWord(bits, i, a_.elements, word & KeptWord(i));
      }
    });
  }

  const SelectArguments& a_;
};

}  // namespace

bool SelectSmallest(const SelectArguments& arguments, uint8_t* bits) {
  return DispatchWeight(arguments.dtype, [&](auto tag) {
    return Selector<typename decltype(tag)::Type>(arguments).Run(bits);
  });
}

}  // namespace nni_compression::compression
