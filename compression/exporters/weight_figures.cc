#include "compression/exporters/weight_figures.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "compression/kernels/dispatch.h"

namespace nni_compression::compression {
namespace {

constexpr int64_t kBlock = 4096;

// Calls f(before, after) with one block after the other.
template <class F>
void ForEachBlock(int64_t n, WeightReader read, F&& f) {
  std::array<double, kBlock> before, after;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const auto size = static_cast<size_t>(std::min(kBlock, n - begin));
    const absl::Span<double> a(before.data(), size), b(after.data(), size);
    read(begin, a, b);
    f(a, b);
  }
}

// The power of two that brings this magnitude near 1; small enough to be a double itself.
int ExponentOf(double magnitude) {
  return magnitude > 0 ? std::clamp(std::ilogb(magnitude), -1000, 1000) : 0;
}

}  // namespace

SquareSum& SquareSum::operator+=(const SquareSum& other) {
  if (other.sum == 0) return *this;
  if (sum == 0) return *this = other;
  const int larger = std::max(exponent, other.exponent);
  sum = std::ldexp(sum, 2 * (exponent - larger)) +
        std::ldexp(other.sum, 2 * (other.exponent - larger));
  exponent = larger;
  return *this;
}

double SquareSum::value() const { return std::ldexp(sum, 2 * exponent); }

WeightFigures Compare(int64_t n, int bins, WeightReader read) {
  WeightFigures figures;
  figures.minimum = std::numeric_limits<double>::infinity();
  figures.maximum = -figures.minimum;
  double largest = 0;             // of the weight, in magnitude
  double largest_difference = 0;  // infinite where one overflows
  ForEachBlock(n, read, [&](absl::Span<double> before, absl::Span<double> after) {
    for (size_t i = 0; i < before.size(); ++i) {
      figures.minimum = std::min({figures.minimum, before[i], after[i]});
      figures.maximum = std::max({figures.maximum, before[i], after[i]});
      largest = std::max(largest, std::fabs(before[i]));
      largest_difference = std::max(largest_difference, std::fabs(before[i] - after[i]));
    }
  });
  figures.before.resize(bins);
  figures.after.resize(bins);
  // Numbers are scaled by powers of two, which does not change rounding, so that no square or
  // difference overflows, and none that matters underflows. The range, the weight and the
  // differences may each be far larger than the other two.
  const double scale = std::ldexp(1.0, -ExponentOf(std::max(-figures.minimum, figures.maximum)));
  const double minimum = figures.minimum * scale;
  const double span = figures.maximum * scale - minimum;
  const auto bin = [&](double scaled) {
    if (!(span > 0)) return 0;
    return static_cast<int>(std::clamp((scaled - minimum) / span * bins, 0.0, bins - 1.0));
  };
  const int exponent = ExponentOf(largest);
  const double signal_scale = std::ldexp(1.0, -exponent);
  const double part = std::isinf(largest_difference) ? 0.5 : 1.0;
  const int noise_exponent = ExponentOf(largest_difference);
  const double noise_scale = std::ldexp(1.0 / part, -noise_exponent);
  double signal = 0, noise = 0;
  ForEachBlock(n, read, [&](absl::Span<double> before, absl::Span<double> after) {
    for (size_t i = 0; i < before.size(); ++i) {
      const double was = before[i] * signal_scale;
      const double difference = (before[i] * part - after[i] * part) * noise_scale;
      ++figures.before[bin(before[i] * scale)];
      ++figures.after[bin(after[i] * scale)];
      signal += was * was;
      noise += difference * difference;
    }
  });
  figures.signal = {signal, exponent};
  figures.noise = {noise, noise_exponent};
  return figures;
}

std::optional<double> Sqnr(const SquareSum& signal, const SquareSum& noise) {
  if (!(signal.sum > 0) || !(noise.sum > 0)) return std::nullopt;
  return 10 * (std::log10(signal.sum) - std::log10(noise.sum)) +
         20 * std::log10(2.0) * (signal.exponent - noise.exponent);
}

void ReadDoubles(DataType dtype, const void* weight, int64_t begin, absl::Span<double> out) {
  DispatchWeight(dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const T* elements = static_cast<const T*>(weight) + begin;
    for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<double>(elements[i]);
  });
}

}  // namespace nni_compression::compression
