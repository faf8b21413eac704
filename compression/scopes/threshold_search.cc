#include "compression/scopes/threshold_search.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compression/kernels/count.h"

namespace nni_compression::compression {
namespace {

constexpr int kDigitBits = 16;
constexpr uint32_t kDigits = 1 << kDigitBits;

int KeyBits(DataType dtype) { return static_cast<int>(ByteLength(dtype, 1)) * 8; }

// Makes each count that of all digits up to this one.
void Accumulate(std::vector<CountsRound::Digit>& digits) {
  for (size_t i = 1; i < digits.size(); ++i) digits[i].count += digits[i - 1].count;
}

// How many weights have a smaller digit; of an accumulated round.
int64_t Smaller(const CountsRound& round, uint32_t digit) {
  const auto found = std::partition_point(round.digits.begin(), round.digits.end(),
                                          [digit](const auto& d) { return d.digit < digit; });
  return found == round.digits.begin() ? 0 : (found - 1)->count;
}

// The largest digit for which `count`, which does not decrease, is at most `total`; it is for 0.
template <class Count>
uint32_t LargestDigit(int64_t total, Count count) {
  uint32_t first = 0;
  uint32_t last = kDigits - 1;
  while (first < last) {
    const uint32_t middle = last - (last - first) / 2;
    if (count(middle) <= total) {
      first = middle;
    } else {
      last = middle - 1;
    }
  }
  return first;
}

}  // namespace

ThresholdSearch::ThresholdSearch(const std::vector<CountedLayer>& layers, int64_t total) {
  int64_t least = 0;
  int64_t most = 0;
  for (const CountedLayer& given : layers) {
    Layer layer;
    layer.given = given;
    layer.below = given.previously_pruned;
    layer.inside = given.elements - given.previously_pruned;
    layers_.push_back(layer);
    least += given.at_least;
    most += given.at_most;
    rounds_left_ = Rounds(given.dtype);
  }
  total_ = std::clamp(total, least, most);
}

int ThresholdSearch::Rounds(DataType dtype) { return KeyBits(dtype) / kDigitBits; }

int64_t ThresholdSearch::Layer::Limited(int64_t count) const {
  return std::clamp(count, given.at_least, given.at_most);
}

absl::Status ThresholdSearch::Check(size_t layer, const CountsRound& round) const {
  const Layer& known = layers_[layer];
  if (known.threshold.known_bits == 0 && !round.digits.empty()) {
    const uint64_t not_finite = static_cast<uint64_t>(KeyEnd(known.given.dtype)) << 1 >>
                                (KeyBits(known.given.dtype) - kDigitBits);
    if (round.digits.back().digit >= not_finite) {
      return absl::InvalidArgumentError("it has weights that are not finite");
    }
  }
  int64_t left = known.inside;
  for (const CountsRound::Digit& digit : round.digits) {
    left -= digit.count;
    if (left < 0) break;
  }
  if (left == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "the counts add up to ", left < 0 ? "more" : "less", " than ", known.inside,
      known.threshold.known_bits == 0 ? ", the weights that the layer's mask in the session keeps"
                                      : ", the weights that have this prefix"));
}

void ThresholdSearch::Count(std::vector<CountsRound> rounds) {
  for (CountsRound& round : rounds) Accumulate(round.digits);
  // Of the layers that no limit has decided about, which have one prefix.
  int64_t left = total_;
  for (const Layer& layer : layers_) left -= layer.fixed.value_or(0);
  const uint32_t shared = LargestDigit(left, [&](uint32_t digit) {
    int64_t sum = 0;
    for (size_t i = 0; i < layers_.size(); ++i) {
      const Layer& layer = layers_[i];
      if (!layer.fixed) sum += layer.Limited(layer.below + Smaller(rounds[i], digit));
    }
    return sum;
  });
  for (size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = layers_[i];
    const auto below = [&](uint32_t digit) { return layer.below + Smaller(rounds[i], digit); };
    if (!layer.fixed && below(shared + 1) <= layer.given.at_least) {
      layer.fixed = layer.given.at_least;
    } else if (!layer.fixed && below(shared) >= layer.given.at_most) {
      layer.fixed = layer.given.at_most;
    }
    const uint32_t digit = layer.fixed ? LargestDigit(*layer.fixed, below) : shared;
    layer.threshold.key = layer.threshold.key << kDigitBits | digit;
    layer.threshold.known_bits += kDigitBits;
    layer.inside = below(digit + 1) - below(digit);
    layer.below = below(digit);
  }
  if (--rounds_left_ == 0) Decide();
}

void ThresholdSearch::Decide() {
  int64_t left = total_;
  for (Layer& layer : layers_) {
    layer.threshold.pruned = layer.fixed.value_or(layer.Limited(layer.below));
    left -= layer.threshold.pruned;
  }
  for (Layer& layer : layers_) {
    if (!layer.fixed) {
      const int64_t ties = std::clamp<int64_t>(
          layer.Limited(layer.below + layer.inside) - layer.threshold.pruned, 0, left);
      layer.threshold.pruned += ties;
      left -= ties;
    }
    layer.threshold.ties = layer.threshold.pruned - layer.below;
  }
}

}  // namespace nni_compression::compression
