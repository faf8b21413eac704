// What the quantizers share: their parameters follow from the range of the weight.
#ifndef NNI_COMPRESSION_COMPRESSION_ALGORITHMS_RANGE_QUANTIZER_H_
#define NNI_COMPRESSION_COMPRESSION_ALGORITHMS_RANGE_QUANTIZER_H_

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "compression/algorithms/algorithm.h"

namespace nni_compression::compression {

// Computes the range, then the parameters, which the algorithm defines, then the codes. A weight
// and its range therefore give the same parameters, bit for bit. Weights are converted to float32:
// 16-bit floats are widened, float64 is rounded, and a float64 weight beyond the range of float32
// is refused like a non-finite one.
class RangeQuantizer : public Quantizer {
 public:
  // `bits`: of a weight's code; 0: weights pass unchanged, and ParametersFor returns nullopt.
  explicit RangeQuantizer(int bits) {
    traits_.bits = bits;
    traits_.accepts_range = true;
    traits_.wants_range_in_step = bits > 0;
  }

  absl::StatusOr<QuantizedWeight> QuantizeWeight(const Layer& layer, const Weight& weight,
                                                 QuantizeReply reply, Clock clock,
                                                 LayerState& state) const override;
  absl::StatusOr<QuantizedWeight> QuantizeRange(const Layer& layer, const Range& range, Clock clock,
                                                LayerState& state) const override;

 protected:
  // The parameters of a weight with this finite range; nullopt: it passes unchanged at this time.
  // May write `state.memory`.
  virtual std::optional<QuantizationParameters> ParametersFor(const Layer& layer,
                                                              const Range& range, Clock clock,
                                                              LayerState& state) const = 0;

  // The largest magnitude of channel c.
  static float MaxMagnitude(const Range& range, size_t c);
};

// Rows of the option table that all quantizers have.
OptionSpec QuantBits(int minimum, int maximum);
// `types`: those that the algorithm quantizes, of "weight", "output" and "input".
OptionSpec QuantTypes(std::vector<std::string> types = {"weight"});

// The bits of a type from the two options above; 0 for a type that is not quantized.
// INVALID_ARGUMENT when they are set per type, but not for this one.
absl::StatusOr<int> BitsFor(const Options& options, const std::string& type);
// INVALID_ARGUMENT when the option `name` is set per type, but not for this one. `what`: an entry.
absl::Status CheckHas(const Options& options, const std::string& name, absl::string_view what,
                      const std::string& type);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_ALGORITHMS_RANGE_QUANTIZER_H_
