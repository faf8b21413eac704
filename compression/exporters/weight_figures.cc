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

}  // namespace

WeightFigures Compare(int64_t n, int bins, WeightReader read) {
  WeightFigures figures;
  figures.minimum = std::numeric_limits<double>::infinity();
  figures.maximum = -figures.minimum;
  ForEachBlock(n, read, [&](absl::Span<double> before, absl::Span<double> after) {
    for (size_t i = 0; i < before.size(); ++i) {
      figures.minimum = std::min({figures.minimum, before[i], after[i]});
      figures.maximum = std::max({figures.maximum, before[i], after[i]});
      const double difference = before[i] - after[i];
      figures.signal += before[i] * before[i];
      figures.noise += difference * difference;
    }
  });
  figures.before.resize(bins);
  figures.after.resize(bins);
  const double width = (figures.maximum - figures.minimum) / bins;
  const auto bin = [&](double value) {
    if (!(width > 0)) return 0;
    return std::min(bins - 1, static_cast<int>((value - figures.minimum) / width));
  };
  ForEachBlock(n, read, [&](absl::Span<double> before, absl::Span<double> after) {
    for (size_t i = 0; i < before.size(); ++i) {
      ++figures.before[bin(before[i])];
      ++figures.after[bin(after[i])];
    }
  });
  return figures;
}

std::optional<double> Sqnr(double signal, double noise) {
  if (!(signal > 0) || !(noise > 0)) return std::nullopt;
  return 10 * std::log10(signal / noise);
}

void ReadDoubles(DataType dtype, const void* weight, int64_t begin, absl::Span<double> out) {
  DispatchWeight(dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const T* elements = static_cast<const T*>(weight) + begin;
    for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<double>(elements[i]);
  });
}

}  // namespace nni_compression::compression
