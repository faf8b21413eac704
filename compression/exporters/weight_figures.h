// How a weight differs from its compressed self.
#ifndef NNI_COMPRESSION_COMPRESSION_EXPORTERS_WEIGHT_FIGURES_H_
#define NNI_COMPRESSION_COMPRESSION_EXPORTERS_WEIGHT_FIGURES_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "compression/types/dtype.h"

namespace nni_compression::compression {

// A sum of squares of doubles, which may be far beyond the largest double, or below the smallest:
// `sum` times 4^exponent.
struct SquareSum {
  double sum = 0;
  int exponent = 0;

  SquareSum& operator+=(const SquareSum& other);

  double value() const;  // infinite where a double cannot hold it
};

struct WeightFigures {
  // The range of both histograms, in `bins` parts of equal width; the last one includes its end.
  double minimum = 0;
  double maximum = 0;
  std::vector<int64_t> before;
  std::vector<int64_t> after;

  SquareSum signal;  // of the weight
  SquareSum noise;   // of the differences
};

// Reads elements [begin, begin + before.size()) of both.
using WeightReader =
    absl::FunctionRef<void(int64_t begin, absl::Span<double> before, absl::Span<double> after)>;

// Reads the n elements twice, in blocks. All must be finite.
WeightFigures Compare(int64_t n, int bins, WeightReader read);

// Signal to quantization noise ratio in decibels; nullopt without noise or signal.
std::optional<double> Sqnr(const SquareSum& signal, const SquareSum& noise);

// Elements [begin, begin + out.size()) of a weight.
void ReadDoubles(DataType dtype, const void* weight, int64_t begin, absl::Span<double> out);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_EXPORTERS_WEIGHT_FIGURES_H_
