// QAT quantizer: Quantization and training of neural networks for efficient integer-arithmetic-only
// inference (Jacob et al. 2018). Per tensor or per channel, in float32:
//
//   affine     lo = min(0, min w), hi = max(0, max w), scale = (hi - lo) / (2^bits - 1)
//              zero_point = clamp(round(-lo / scale), 0, 2^bits - 1), codes in [0, 2^bits - 1]
//   symmetric  scale = max|w| / (2^(bits-1) - 1), zero_point = 0,
//              codes in [-(2^(bits-1) - 1), 2^(bits-1) - 1]
//   code  = clamp(round_half_even(w * (1 / scale)) + zero_point)
//   value = (code - zero_point) * scale
//
// The scale is at least the smallest normal float32, and 1 where all weights are zero. Where hi -
// lo overflows, the scale is computed in double. Before quant_start_step weights pass unchanged.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/match.h"
#include "compression/algorithms/range_quantizer.h"

namespace nni_compression::compression {
namespace {

// 1 for a channel of zeros.
float FloorScale(float scale, bool zeros) {
  return zeros ? 1.0f : std::max(scale, std::numeric_limits<float>::min());
}

class QatQuantizer : public RangeQuantizer {
 public:
  QatQuantizer(int bits, int64_t start_step, bool per_channel, bool symmetric)
      : RangeQuantizer(bits),
        start_step_(start_step),
        per_channel_(per_channel),
        symmetric_(symmetric),
        code_max_(symmetric ? (1 << (bits - 1)) - 1 : (1 << bits) - 1),
        code_min_(symmetric ? -code_max_ : 0) {}

  bool needs_step() const override { return start_step_ > 0; }

  // The start step was crossed, in either direction, since the last answer.
  bool IsStale(const Layer&, const LayerState& state, Clock clock) const override {
    return state.parameters.has_value() != (clock.step >= start_step_);
  }

  std::optional<int> channel_axis(const Layer& layer) const override {
    return per_channel_ ? std::make_optional(layer.channel_axis) : std::nullopt;
  }

 protected:
  std::optional<QuantizationParameters> ParametersFor(const Layer& layer, const Range& range,
                                                      Clock clock, LayerState&) const override {
    if (clock.step < start_step_) return std::nullopt;
    QuantizationParameters parameters;
    parameters.bits = bits();
    parameters.code_min = code_min_;
    parameters.code_max = code_max_;
    parameters.channel_axis = channel_axis(layer);
    for (size_t c = 0; c < range.minimum.size(); ++c) {
      if (symmetric_) {
        AddSymmetric(MaxMagnitude(range, c), parameters);
      } else {
        AddAffine(std::min(0.0f, range.minimum[c]), std::max(0.0f, range.maximum[c]), parameters);
      }
    }
    return parameters;
  }

 private:
  void AddSymmetric(float max, QuantizationParameters& parameters) const {
    parameters.scale.push_back(FloorScale(max / static_cast<float>(code_max_), max == 0));
    parameters.zero_point.push_back(0);
  }

  void AddAffine(float lo, float hi, QuantizationParameters& parameters) const {
    float scale = (hi - lo) / static_cast<float>(code_max_);
    if (!std::isfinite(hi - lo)) {
      scale = static_cast<float>((static_cast<double>(hi) - static_cast<double>(lo)) / code_max_);
    }
    scale = FloorScale(scale, lo == hi);
    const float zero_point = std::nearbyint(-lo / scale);
    parameters.scale.push_back(scale);
    parameters.zero_point.push_back(
        static_cast<int32_t>(std::clamp(zero_point, 0.0f, static_cast<float>(code_max_))));
  }

  const int64_t start_step_;
  const bool per_channel_;
  const bool symmetric_;
  const int32_t code_max_;
  const int32_t code_min_;
};

absl::StatusOr<std::unique_ptr<Compressor>> Create(const Options& options) {
  auto bits = WeightBits(options);
  if (!bits.ok()) return bits.status();
  const std::string& scheme = options.String("quant_scheme");
  return std::make_unique<QatQuantizer>(*bits, options.Integer("quant_start_step"),
                                        absl::StartsWith(scheme, "per_channel"),
                                        absl::EndsWith(scheme, "symmetric"));
}

}  // namespace

AlgorithmInfo QatAlgorithm() {
  OptionSpec start_step;
  start_step.name = "quant_start_step";
  start_step.type = OptionType::kInteger;
  start_step.default_value = 0;
  start_step.description = "Step from which weights are quantized; before it they pass unchanged.";
  OptionSpec scheme;
  scheme.name = "quant_scheme";
  scheme.type = OptionType::kString;
  scheme.default_value = "per_tensor_affine";
  scheme.choices = {"per_tensor_affine", "per_tensor_symmetric", "per_channel_affine",
                    "per_channel_symmetric"};
  scheme.description = "One scale per layer or per channel; with or without a zero point.";

  AlgorithmInfo info;
  info.name = "qat";
  info.kind = AlgorithmKind::kQuantizer;
  info.summary = "Quantizes weights to evenly spaced values while the network trains.";
  info.reference =
      "Jacob et al., Quantization and training of neural networks for efficient "
      "integer-arithmetic-only inference, 2018, https://arxiv.org/abs/1712.05877";
  info.options = {QuantBits(2, 16), QuantTypes(), start_step, scheme};
  info.example = {{"quant_types", {"weight"}}, {"quant_bits", 8}};
  info.create = Create;
  return info;
}

}  // namespace nni_compression::compression
