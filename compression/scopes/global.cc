#include "compression/scopes/global.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/numeric/bits.h"
#include "compression/kernels/count.h"

namespace nni_compression::compression {
namespace {

// Bounds of scores are computed in another order than the scores.
constexpr double kSlack = 1e-8;
// A pass tells at most as many ranges apart as there are elements for each.
constexpr int64_t kElementsPerRange = 16;
constexpr int64_t kMinRanges = 16;
// Pieces of a layer that a round divides, each by a pass over the layer.
constexpr size_t kMaxDivisions = 4;

// Kept weights whose keys are in [begin, end).
struct Piece {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t count = 0;
  double square = 0;  // the sum of their squares; of LAMP only

  bool one_value() const { return end - begin == 1; }
};

int64_t Ranges(int64_t elements) {
  const auto wanted = static_cast<uint64_t>(elements / kElementsPerRange);
  return std::clamp<int64_t>(static_cast<int64_t>(absl::bit_floor(wanted)), kMinRanges,
                             kMaxKeyRanges);
}

// The least shift that makes at most so many ranges of so many keys.
int ShiftFor(int64_t keys, int64_t ranges) {
  int shift = 0;
  while ((keys - 1) >> shift >= ranges) ++shift;
  return shift;
}

// What is known of the scores of one layer: pieces in the order of their keys. Those that cannot
// contain the threshold are added up.
class Known {
 public:
  Known(const RankedLayer& layer, Normalize normalize, int64_t grain)
      : layer_(layer), normalize_(normalize), below_(layer.previously_pruned) {
    arguments_.dtype = layer.dtype;
    arguments_.weight = layer.scores;
    arguments_.elements = layer.elements;
    arguments_.previous = layer.previous;
    arguments_.grain = grain;
  }

  // The first pass. False: a score is not finite.
  bool Count() {
    const Piece all{0, KeyEnd(layer_.dtype)};
    if (normalize_ == Normalize::kNone) {
      Aim(all);
      const KeyCounts counted = CountMagnitudes(arguments_);
      if (counted.largest >= all.end) return false;
      AddPieces(counted.counts, pieces_);
    } else {
      Aim(all);
      const KeySums sums = SumMagnitudes(arguments_);
      if (sums.largest >= all.end) return false;
      exponent_ = sums.exponent;
      AddPieces(sums.ranges, pieces_);
      SetDivisor(sums.ranges);
    }
    Index();
    return true;
  }

  // How many weights are pruned if those with scores below t are: at least and at most. Equal where
  // pieces with such scores have one value.
  int64_t AtLeast(double t) const {
    const size_t i = std::lower_bound(highest_.begin(), highest_.end(), t) - highest_.begin();
    return Limited(before_[i] +
                   (i < pieces_.size() && pieces_[i].one_value() ? PartBelow(i, t) : 0));
  }
  int64_t AtMost(double t) const {
    const size_t i = std::lower_bound(lowest_.begin(), lowest_.end(), t) - lowest_.begin();
    if (i == 0 || !pieces_[i - 1].one_value()) return Limited(before_[i]);
    return Limited(before_[i - 1] + PartBelow(i - 1, t));
  }

  // Given that the threshold is in [lo, hi]: divides pieces of several values that may contain it,
  // those with most weights first. Returns whether there were any.
  bool Divide(double lo, double hi) {
    const size_t first = std::lower_bound(highest_.begin(), highest_.end(), lo) - highest_.begin();
    const size_t last = std::upper_bound(lowest_.begin(), lowest_.end(), hi) - lowest_.begin();
    for (size_t i = 0; i < first; ++i) below_ += pieces_[i].count;
    for (size_t i = std::max(first, last); i < pieces_.size(); ++i) above_ += pieces_[i].square;
    std::vector<Piece> around;
    std::vector<size_t> wide;
    for (size_t i = first; i < last; ++i) {
      if (!pieces_[i].one_value()) wide.push_back(around.size());
      around.push_back(pieces_[i]);
    }
    if (wide.size() > kMaxDivisions) {
      std::nth_element(
          wide.begin(), wide.begin() + kMaxDivisions, wide.end(), [&around](size_t a, size_t b) {
            return std::make_pair(-around[a].count, a) < std::make_pair(-around[b].count, b);
          });
      wide.resize(kMaxDivisions);
    }
    pieces_.clear();
    for (size_t i = 0; i < around.size(); ++i) {
      if (std::count(wide.begin(), wide.end(), i) == 0) {
        pieces_.push_back(around[i]);
        continue;
      }
      Aim(around[i]);
      if (normalize_ == Normalize::kLamp) {
        AddPieces(SumMagnitudes(arguments_, exponent_).ranges, pieces_);
      } else {
        AddPieces(CountMagnitudes(arguments_).counts, pieces_);
      }
    }
    Index();
    return !wide.empty();
  }

 private:
  // Sets what the next pass divides.
  void Aim(const Piece& piece) {
    arguments_.lo = piece.begin;
    arguments_.hi = piece.end;
    arguments_.shift = ShiftFor(piece.end - piece.begin, Ranges(layer_.elements));
    if (normalize_ != Normalize::kNone) {
      arguments_.shift = std::min(arguments_.shift, MantissaBits(layer_.dtype));
    }
  }

  static Piece ToPiece(int64_t count) { return {0, 0, count, 0}; }
  static Piece ToPiece(const KeySums::Range& range) { return {0, 0, range.count, range.square}; }

  // The ranges of the last pass.
  template <class Range>
  void AddPieces(const std::vector<Range>& ranges, std::vector<Piece>& pieces) const {
    for (size_t r = 0; r < ranges.size(); ++r) {
      Piece piece = ToPiece(ranges[r]);
      if (piece.count == 0) continue;
      piece.begin = arguments_.lo + (static_cast<int64_t>(r) << arguments_.shift);
      // The last range of float64 would end beyond int64.
      piece.end =
          piece.begin + std::min(arguments_.hi - piece.begin, int64_t{1} << arguments_.shift);
      pieces.push_back(piece);
    }
  }

  void SetDivisor(const std::vector<KeySums::Range>& ranges) {
    int64_t count = 0;
    double sum = 0;
    double square = 0;
    for (const KeySums::Range& range : ranges) {
      count += range.count;
      sum += range.sum;
      square += range.square;
    }
    if (normalize_ == Normalize::kMean) divisor_ = sum / static_cast<double>(count);
    if (normalize_ == Normalize::kL2) divisor_ = std::sqrt(square);
  }

  double Value(int64_t key) const {
    const double value = KeyValue(layer_.dtype, key);
    return normalize_ == Normalize::kNone ? value : std::ldexp(value, -exponent_);
  }

  // The score of a magnitude; its square and those that rank after it add up to `from_here`.
  double ScoreOf(double value, double from_here) const {
    if (value == 0) return 0;
    if (normalize_ == Normalize::kLamp) return from_here == 0 ? 0 : value * value / from_here;
    return normalize_ == Normalize::kNone ? value : value / divisor_;
  }

  // Of the j-th of a piece of one value.
  double ScoreAt(size_t i, int64_t j) const {
    const double value = Value(pieces_[i].begin);
    return ScoreOf(value, after_[i] + static_cast<double>(pieces_[i].count - j) * (value * value));
  }

  // How many of a piece of one value have scores below t.
  int64_t PartBelow(size_t i, double t) const {
    int64_t low = 0;
    int64_t high = pieces_[i].count;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (ScoreAt(i, middle) < t) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

  int64_t Limited(int64_t count) const {
    return std::clamp(count, layer_.at_least, layer_.at_most);
  }

  // Recomputes what the search uses, after the pieces changed.
  void Index() {
    const size_t n = pieces_.size();
    before_.assign(n + 1, below_);
    after_.assign(n, above_);
    lowest_.resize(n);
    highest_.resize(n);
    for (size_t i = 0; i < n; ++i) before_[i + 1] = before_[i] + pieces_[i].count;
    for (size_t i = n; i-- > 1;) after_[i - 1] = after_[i] + pieces_[i].square;
    for (size_t i = 0; i < n; ++i) {
      const Piece& piece = pieces_[i];
      if (piece.one_value()) {
        lowest_[i] = ScoreAt(i, 0);
        highest_[i] = ScoreAt(i, piece.count - 1);
        continue;
      }
      const double low = Value(piece.begin);
      const double high = Value(piece.end - 1);
      lowest_[i] = ScoreOf(low, after_[i] + piece.square) * (1 - kSlack);
      highest_[i] = ScoreOf(high, after_[i] + high * high) * (1 + kSlack);
    }
    // Scores do not decrease from piece to piece, and so do the tightest bounds.
    for (size_t i = 1; i < n; ++i) lowest_[i] = std::max(lowest_[i], lowest_[i - 1]);
    for (size_t i = n; i-- > 1;) highest_[i - 1] = std::min(highest_[i - 1], highest_[i]);
  }

  const RankedLayer& layer_;
  const Normalize normalize_;
  CountArguments arguments_;
  int exponent_ = 0;    // values and squares are in units of its power of two, unless kNone
  double divisor_ = 1;  // of kMean and kL2
  int64_t below_ = 0;   // weights that rank before the pieces
  double above_ = 0;    // squares of those that rank after them
  std::vector<Piece> pieces_;
  std::vector<int64_t> before_;  // weights that rank before each piece, and before the end
  std::vector<double> after_;    // squares of those that rank after each
  std::vector<double> lowest_;   // no score of the piece is lower
  std::vector<double> highest_;  // or higher
};

double ToDouble(uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

uint64_t ToBits(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// The largest t in [lo, hi] for which `count`, which does not decrease, is at most `total`; lo if
// there is none. Not negative doubles order as their bits do.
template <class Count>
double LargestWith(double lo, double hi, int64_t total, Count count) {
  uint64_t first = ToBits(lo);
  uint64_t last = ToBits(hi);
  while (first < last) {
    const uint64_t middle = last - (last - first) / 2;
    if (count(ToDouble(middle)) <= total) {
      first = middle;
    } else {
      last = middle - 1;
    }
  }
  return ToDouble(first);
}

}  // namespace

const std::vector<std::string>& NormalizeNames() {
  static const auto* const names = new std::vector<std::string>{"none", "mean", "l2", "lamp"};
  return *names;
}

std::optional<Normalize> NormalizeFromName(absl::string_view name) {
  const std::vector<std::string>& names = NormalizeNames();
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) return std::nullopt;
  return static_cast<Normalize>(found - names.begin());
}

PruneCounts CountGlobally(absl::Span<const RankedLayer> layers, int64_t total, Normalize normalize,
                          int64_t grain) {
  PruneCounts result;
  std::vector<Known> known;
  known.reserve(layers.size());
  int64_t least = 0;
  int64_t most = 0;
  for (const RankedLayer& layer : layers) {
    least += layer.at_least;
    most += layer.at_most;
    known.emplace_back(layer, normalize, grain);
    if (known.back().Count()) continue;
    result.not_finite = known.size() - 1;
    return result;
  }
  total = std::clamp(total, least, most);

  // The threshold is the largest t for which no more than `total` scores are below.
  const auto at_least = [&known](double t) {
    int64_t sum = 0;
    for (const Known& layer : known) sum += layer.AtLeast(t);
    return sum;
  };
  const auto at_most = [&known](double t) {
    int64_t sum = 0;
    for (const Known& layer : known) sum += layer.AtMost(t);
    return sum;
  };
  double lo = 0;
  double hi = std::numeric_limits<double>::infinity();
  for (bool divided = true; divided;) {
    const double from = LargestWith(lo, hi, total, at_most);
    hi = LargestWith(from, hi, total, at_least);
    lo = from;
    divided = false;
    for (Known& layer : known) divided |= layer.Divide(lo, hi);
  }

  const double beyond = std::nextafter(lo, std::numeric_limits<double>::infinity());
  int64_t left = total;
  for (const Known& layer : known) {
    result.counts.push_back(layer.AtLeast(lo));
    left -= result.counts.back();
  }
  for (size_t i = 0; i < known.size(); ++i) {
    const int64_t ties = std::clamp<int64_t>(known[i].AtLeast(beyond) - result.counts[i], 0, left);
    result.counts[i] += ties;
    left -= ties;
  }
  return result;
}

int64_t GlobalWorkBytes(DataType dtype, int64_t elements) {
  // A piece and its entries, old and new.
  constexpr int64_t kPerPiece = 2 * (sizeof(Piece) + sizeof(int64_t) + 3 * sizeof(double));
  const int64_t exponents = (KeyEnd(dtype) >> MantissaBits(dtype)) + 1;
  return kPerPiece * std::min(elements, std::max(Ranges(elements), exponents));
}

}  // namespace nni_compression::compression
