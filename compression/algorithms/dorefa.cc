// DoReFa quantizer: DoReFa-Net (Zhou et al. 2016).
//
//   u     = tanh(w) / (2 max|tanh(w)|) + 0.5
//   code  = round_half_even(u * (2^bits - 1))
//   value = 2 * code / (2^bits - 1) - 1
//
// All zeros stay zeros, for which the formula has no code: such a layer is answered with codes 0 of
// the affine formula with scale 1.
#include <memory>
#include <optional>

#include "compression/algorithms/range_quantizer.h"

namespace nni_compression::compression {
namespace {

class DoReFaQuantizer : public RangeQuantizer {
 public:
  explicit DoReFaQuantizer(int bits) : RangeQuantizer(bits) {
    // The parameters do not depend on the weights, except for all zeros.
    traits_.wants_range_in_step = false;
  }

 protected:
  std::optional<QuantizationParameters> ParametersFor(const Layer&, const Range& range, Clock,
                                                      LayerState&) const override {
    QuantizationParameters parameters;
    parameters.bits = traits_.bits;
    parameters.code_min = 0;
    parameters.code_max = (1 << traits_.bits) - 1;
    if (MaxMagnitude(range, 0) == 0) {
      parameters.scale = {1.0f};
      parameters.zero_point = {0};
      return parameters;
    }
    parameters.formula = Formula::kDoReFa;
    parameters.rounding = Rounding::kDoReFa;
    return parameters;
  }
};

}  // namespace

AlgorithmInfo DorefaAlgorithm() {
  AlgorithmInfo info;
  info.name = "dorefa";
  info.kind = AlgorithmKind::kQuantizer;
  info.summary = "Quantizes weights, squashed by tanh into [-1, 1], to few bits.";
  info.reference =
      "Zhou et al., DoReFa-Net: training low bitwidth convolutional neural networks with low "
      "bitwidth gradients, 2016, https://arxiv.org/abs/1606.06160";
  info.options = {QuantBits(1, 16), QuantTypes()};
  info.example = {{"quant_bits", 4}};
  info.create = [](const Options& options) -> absl::StatusOr<std::unique_ptr<Compressor>> {
    auto bits = BitsFor(options, "weight");
    if (!bits.ok()) return bits.status();
    return std::make_unique<DoReFaQuantizer>(*bits);
  };
  return info;
}

}  // namespace nni_compression::compression
