#include "compression/kernels/select.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <mutex>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/numeric/bits.h"
#include "absl/types/span.h"
#include "compression/kernels/count.h"
#include "compression/kernels/dispatch.h"
#include "compression/kernels/finite.h"
#include "compression/kernels/loops.h"
#include "compression/kernels/magnitude.h"
#include "compression/kernels/parallel.h"
#include "compression/kernels/words.h"

namespace nni_compression::compression {
namespace {

// Only a weight that changes during the selection needs more.
constexpr int kMaxPasses = 16;
// The search for the last tie keeps one counter per block, at most this many.
constexpr int64_t kTieBlocks = int64_t{1} << 16;

constexpr int64_t kMinSample = 512;
constexpr int64_t kMaxSample = 65536;
// Half the bracket's width, in standard deviations of a sample's quantile: one bracket in a hundred
// misses the threshold, which costs a pass, while a narrow one speeds up every weight.
constexpr double kDeviations = 2.6;

// Sample positions: the same for every weight of a size, and without a pattern that a weight could
// have.
int64_t SamplePlace(int64_t i, int64_t elements) {
  const uint64_t random = static_cast<uint64_t>(i + 1) * 0x9e3779b97f4a7c15u;
  return static_cast<int64_t>(
      (static_cast<unsigned __int128>(random) * static_cast<uint64_t>(elements)) >> 64);
}

template <class T>
class Selector {
 public:
  explicit Selector(const SelectArguments& arguments)
      : a_(arguments), scan_(CurrentLoops().scan<Key>()) {}

  bool Run(uint8_t* bits) {
    const int64_t rank = a_.prune - a_.previously_pruned;
    const int64_t candidates = a_.elements - a_.previously_pruned;
    if (rank <= 0) return PackFrom(0, bits);
    if (rank >= candidates) return PackFrom(kEnd, bits);
    Bracket bracket = FirstBracket(rank, candidates);
    if (bracket.inside == kUnknown && PackAtOnce(bracket, rank, candidates, bits)) return finite_;
    for (int pass = 0; !IsFinal(bracket) && pass < kMaxPasses; ++pass) {
      bracket = Narrow(bracket, rank, candidates);
      if (!finite_) return false;
    }
    const int64_t take = std::clamp<int64_t>(rank - bracket.below, 1, bracket.inside);
    if (take == bracket.inside) return PackFrom(bracket.hi, bits);
    if (bracket.inside <= a_.limits.found) return PackAndOrder(bracket, take, bits);
    return PackTies(bracket.lo, FindTie(bracket.lo, take) + 1, bits);
  }

 private:
  using Key = typename Magnitude<T>::Key;
  using Scans = ScanLoops<Key>;
  using Scan = typename Scans::Scan;
  using Found = typename Scans::Found;
  static constexpr Key kEnd = Magnitude<T>::kNonFinite;  // above all finite keys
  static constexpr int64_t kBuckets = Scans::kBuckets;
  static constexpr int64_t kUnknown = -1;

  // Keys [lo, hi) that contain the threshold, known or estimated.
  struct Bracket {
    Key lo = 0;
    Key hi = kEnd;
    int64_t below = 0;          // candidates below lo
    int64_t inside = kUnknown;  // candidates in [lo, hi)
    double guess = 1;           // the fraction of the weight's elements that is inside
  };

  // What was found in a stretch of the weight.
  struct Piece {
    std::unique_ptr<Found[]> found;
    int64_t size = 0;

    absl::Span<const Found> span() const { return {found.get(), static_cast<size_t>(size)}; }
  };

  // The result of a packing pass.
  struct Packed {
    int64_t below = 0;         // candidates below the scan's limits
    int64_t inside = 0;        // candidates inside
    std::vector<Piece> found;  // these, in no order
    bool complete = true;      // all of these
  };

  bool IsFinal(const Bracket& bracket) const {
    if (bracket.inside == kUnknown) return false;
    return bracket.inside <= a_.limits.found || bracket.hi - bracket.lo == 1;
  }

  Scan ScanOf(Key lo, Key hi) const { return {a_.weight, a_.elements, a_.previous, lo, hi}; }

  Bracket FirstBracket(int64_t rank, int64_t candidates) {
    if (candidates <= a_.limits.tiny) return {0, kEnd, 0, candidates};
    return SampledBracket(static_cast<double>(rank) / static_cast<double>(candidates));
  }

  // The keys around the quantile of a sample, within its error.
  Bracket SampledBracket(double quantile) const {
    const int64_t wanted = std::clamp(a_.elements / 256, kMinSample, kMaxSample);
    std::vector<Key> keys;
    keys.reserve(wanted);
    for (int64_t i = 0; i < wanted; ++i) {
      const int64_t place = SamplePlace(i, a_.elements);
      if (a_.previous != nullptr && !BitAt(a_.previous, place)) continue;
      keys.push_back(KeyAt<T>(a_.weight, place));
    }
    const auto size = static_cast<double>(keys.size());
    const double slack = kDeviations * std::sqrt(size * quantile * (1 - quantile)) + 2;
    const auto first = static_cast<int64_t>(std::floor(size * quantile - slack));
    const auto last = static_cast<int64_t>(std::ceil(size * quantile + slack));
    Bracket bracket;
    bracket.guess = 2 * slack / static_cast<double>(wanted);
    auto begin = keys.begin();
    if (first >= 0) {
      begin += first;
      std::nth_element(keys.begin(), begin, keys.end());
      bracket.lo = std::min<Key>(*begin, kEnd - 1);
    }
    if (last < static_cast<int64_t>(keys.size())) {
      const auto end = keys.begin() + last;
      std::nth_element(begin, end, keys.end());
      bracket.hi = std::min<Key>(*end, kEnd - 1) + 1;
    }
    bracket.hi = std::max<Key>(bracket.hi, bracket.lo + 1);
    return bracket;
  }

  // Of a key's distance from the bracket's begin, for its bucket.
  static int BucketShift(const Bracket& bracket) {
    int shift = 0;
    while (static_cast<int64_t>((bracket.hi - bracket.lo - 1) >> shift) >= kBuckets) ++shift;
    return shift;
  }

  // A pass over the weight: returns the part of the bracket that has the threshold or, if the
  // bracket missed it, everything on the correct side of it.
  Bracket Narrow(const Bracket& bracket, int64_t rank, int64_t candidates) {
    const int shift = BucketShift(bracket);
    const KeyCounts counted = CountMagnitudes({a_.dtype, a_.weight, a_.elements, a_.previous,
                                               bracket.lo, bracket.hi, shift, a_.limits.grain});
    checked_ = true;
    if (counted.largest >= kEnd) finite_ = false;
    const int64_t below = counted.below;
    if (rank <= below) return {0, bracket.lo, 0, below};
    Bracket found{bracket.lo, bracket.lo, below, 0};
    for (size_t b = 0; b < counted.counts.size(); ++b) {
      const int64_t next =
          static_cast<int64_t>(bracket.lo) + (static_cast<int64_t>(b + 1) << shift);
      found.hi = static_cast<Key>(std::min<int64_t>(next, bracket.hi));
      found.inside = counted.counts[b];
      if (rank <= found.below + found.inside) return found;
      found.below += found.inside;
      found.lo = found.hi;
      if (found.hi == bracket.hi) break;
    }
    return {bracket.hi, kEnd, found.below, std::max<int64_t>(1, candidates - found.below)};
  }

  // Keeps the candidates whose key is not below the threshold.
  bool PackFrom(Key threshold, uint8_t* bits) {
    Pack(ScanOf(threshold, threshold), 0, a_.elements, bits);
    return finite_;
  }

  // The whole selection in one pass, if the candidates inside the bracket can be sorted. False:
  // there were too many, or the bracket missed the threshold and has been replaced by the rest.
  bool PackAtOnce(Bracket& bracket, int64_t rank, int64_t candidates, uint8_t* bits) {
    const double density = 1.25 * bracket.guess;
    const double expected = density * static_cast<double>(a_.elements);
    if (expected > static_cast<double>(a_.limits.found)) return false;
    const Packed packed =
        Pack(ScanOf(bracket.lo, bracket.hi), 0, a_.elements, bits, a_.limits.found, density);
    checked_ = true;
    if (!finite_) return true;
    const int64_t until = packed.below + packed.inside;
    if (rank <= packed.below) {
      bracket = {0, bracket.lo, 0, packed.below};
    } else if (rank > until) {
      bracket = {bracket.hi, kEnd, until, std::max<int64_t>(1, candidates - until)};
    } else if (!packed.complete) {
      bracket.below = packed.below;
      bracket.inside = packed.inside;
    } else {
      PruneFirst(packed, bracket, rank - packed.below, bits);
      return true;
    }
    return false;
  }

  // Prunes the candidates below the bracket, and the first `take` of those inside.
  bool PackAndOrder(const Bracket& bracket, int64_t take, uint8_t* bits) {
    const Scan scan = ScanOf(bracket.lo, bracket.hi);
    PruneFirst(Pack(scan, 0, a_.elements, bits, bracket.inside), bracket, take, bits);
    return finite_;
  }

  // Prunes the first `take` of what was found in the bracket.
  static void PruneFirst(const Packed& packed, const Bracket& bracket, int64_t take,
                         uint8_t* bits) {
    const auto prune = [bits](const Found& f, bool yes) {
      bits[f.index / 8] &= static_cast<uint8_t>(~(static_cast<int>(yes) << (f.index % 8)));
    };
    const int shift = BucketShift(bracket);
    const auto bucket_of = [&](const Found& f) {
      return Scans::BucketOf(f.key, bracket.lo, shift);
    };
    std::vector<uint32_t> counts(kBuckets);
    for (const Piece& piece : packed.found) {
      for (const Found& f : piece.span()) ++counts[bucket_of(f)];
    }
    int64_t last = 0;  // the bucket with the last one to be pruned
    while (last + 1 < kBuckets && take > counts[last]) take -= counts[last++];
    std::vector<Found> there;
    there.reserve(counts[last]);
    for (const Piece& piece : packed.found) {
      for (const Found& f : piece.span()) {
        const int64_t bucket = bucket_of(f);
        prune(f, bucket < last);
        if (bucket == last) there.push_back(f);
      }
    }
    take = std::min<int64_t>(take, static_cast<int64_t>(there.size()));
    std::nth_element(there.begin(), there.begin() + take, there.end(),
                     [](const Found& a, const Found& b) {
                       return std::tie(a.key, a.index) < std::tie(b.key, b.index);
                     });
    for (int64_t i = 0; i < take; ++i) prune(there[i], true);
  }

  // Prunes the candidates below the key, and those with it that are before `cut`.
  bool PackTies(Key key, int64_t cut, uint8_t* bits) {
    const Scan above = ScanOf(key + 1, key + 1);
    const int64_t word = (cut - 1) / 64 * 64;  // the cut is in it, or at its end
    Pack(above, 0, std::min(word + 64, a_.elements), bits);
    const uint64_t before = LoadWord(bits, word, a_.elements);
    Pack(ScanOf(key, key), word, a_.elements, bits);
    const uint64_t after = LoadWord(bits, word, a_.elements);
    const uint64_t first = LowBits(cut - word);
    StoreWord(bits, word, a_.elements, (before & first) | (after & ~first));
    return finite_;
  }

  // [begin, end), in multiples of 64 but for the weight's end. Collects what is inside, up to
  // `most` in a thread's stretch, and up to this share of the stretch's elements.
  Packed Pack(const Scan& scan, int64_t begin, int64_t end, uint8_t* bits, int64_t most = 0,
              double density = 1) {
    Packed packed;
    std::mutex mutex;
    ParallelFor(end - begin, a_.limits.grain, [&](int64_t b, int64_t e) {
      const auto share = static_cast<int64_t>(density * static_cast<double>(e - b));
      const int64_t room = std::min(most, share + 64);
      Piece mine{std::unique_ptr<Found[]>(new Found[room])};  // without touching it
      Key largest = 0;
      const auto counts =
          scan_.pack(scan, begin + b, begin + e, bits, mine.found.get(), room, largest);
      mine.size = counts.found;
      std::lock_guard<std::mutex> lock(mutex);
      packed.below += counts.below;
      packed.inside += counts.inside;
      packed.complete &= counts.found == counts.inside;
      packed.found.push_back(std::move(mine));
      if (!checked_ && largest >= kEnd) finite_ = false;
    });
    return packed;
  }

  // The flat index of the rank-th candidate with this key, rank >= 1.
  int64_t FindTie(Key key, int64_t rank) const {
    const Scan scan = ScanOf(key, key + 1);
    const int64_t least = (a_.limits.grain / 16 + 63) / 64 * 64;
    const int64_t block = std::max(least, (a_.elements / kTieBlocks + 64) / 64 * 64);
    const auto ties_in = [&](int64_t begin, int64_t end) {
      uint32_t ties = 0;
      Key largest = 0;
      scan_.count(scan, begin, std::min(end, a_.elements), 0, &ties, largest);
      return int64_t{ties};
    };
    std::vector<int64_t> ties((a_.elements + block - 1) / block);
    ParallelFor(static_cast<int64_t>(ties.size()), 16, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) ties[b] = ties_in(b * block, (b + 1) * block);
    });
    size_t b = 0;
    while (b + 1 < ties.size() && rank > ties[b]) rank -= ties[b++];
    const int64_t end = std::min<int64_t>(a_.elements, (b + 1) * block);
    for (int64_t i = b * block; i < end; i += 64) {
      const int64_t here = ties_in(i, i + 64);
      if (rank > here) {
        rank -= here;
        continue;
      }
      for (int64_t j = i; j < std::min(end, i + 64); ++j) {
        const bool kept = a_.previous == nullptr || BitAt(a_.previous, j);
        if (kept && KeyAt<T>(a_.weight, j) == key && --rank == 0) return j;
      }
    }
    return end - 1;
  }

  const SelectArguments& a_;
  const Scans& scan_;
  bool checked_ = false;  // for elements that are not finite, by an earlier pass
  bool finite_ = true;
};

}  // namespace

bool SelectSmallest(const SelectArguments& arguments, uint8_t* bits) {
  return DispatchWeight(arguments.dtype, [&](auto tag) {
    return Selector<typename decltype(tag)::Type>(arguments).Run(bits);
  });
}

}  // namespace nni_compression::compression
