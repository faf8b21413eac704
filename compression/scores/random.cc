// Random: a number in [0, 1) that depends on the option `seed`, the layer's name and the index of
// the weight, or the filter: the element of that index of SplitMix64 (Steele, Lea & Flood 2014).
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/strings/string_view.h"
#include "compression/kernels/parallel.h"
#include "compression/scores/score.h"

namespace nni_compression::compression {
namespace {

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;

uint64_t Mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// FNV-1a.
uint64_t Hash(absl::string_view text) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  return hash;
}

void Fill(int64_t seed, const Layer& layer, int64_t n, double* out) {
  const uint64_t begin = Mix(Hash(layer.name) + Mix(static_cast<uint64_t>(seed) + kGolden));
  ParallelFor(n, kGrain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const uint64_t bits = Mix(begin + static_cast<uint64_t>(i + 1) * kGolden);
      out[i] = static_cast<double>(bits >> 11) * 0x1p-53;
    }
  });
}

class Random : public Score {
 public:
  explicit Random(int64_t seed) : seed_(seed) {}

  absl::StatusOr<Scores> Of(const Layer& layer, const Weight&, const Statistics&) const override {
    Buffer numbers = Buffer::Allocate(layer.elements * bytes_per_element());
    auto* const out = reinterpret_cast<double*>(numbers.data());
    Fill(seed_, layer, layer.elements, out);
    return Scores{DataType::kFloat64, out, std::move(numbers)};
  }
  int64_t bytes_per_element() const override { return sizeof(double); }

 private:
  const int64_t seed_;
};

class RandomFilters : public FilterScore {
 public:
  explicit RandomFilters(int64_t seed) : seed_(seed) {}

  absl::StatusOr<std::vector<double>> Of(const Layer& layer, const Weight&,
                                         const Statistics&) const override {
    std::vector<double> numbers(static_cast<size_t>(layer.filters()));
    Fill(seed_, layer, layer.filters(), numbers.data());
    return numbers;
  }

 private:
  const int64_t seed_;
};

}  // namespace

ScoreInfo RandomScore() {
  ScoreInfo info;
  info.name = "random";
  info.formula = "a random number";
  OptionSpec seed;
  seed.name = "seed";
  seed.type = OptionType::kInteger;
  seed.default_value = 0;
  seed.description = "Another seed prunes other weights; the same one prunes the same.";
  info.options = {seed};
  info.create = [](const Options& options) {
    return std::make_unique<const Random>(options.Integer("seed"));
  };
  info.create_for_filters = [](const Options& options) {
    return std::make_unique<const RandomFilters>(options.Integer("seed"));
  };
  return info;
}

}  // namespace nni_compression::compression
