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
// With group_size, each group of that many consecutive weights of a channel, flattened in C order,
// is quantized like a channel of its own.
//
// The scale is at least the smallest normal float32, and 1 where all weights are zero. Where hi -
// lo overflows, the scale is computed in double. Before quant_start_step weights pass unchanged.
//
// Activations: per tensor, with parameters as above of a moving-average (EMA) range,
//
//   lo = 0.99 * lo + 0.01 * (smallest number since the last step), hi likewise
//
// in float32, initialized by the first range observed. Ranges are also observed before
// quant_start_step.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "compression/algorithms/range_quantizer.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {
namespace {

// 1 for a channel of zeros.
float FloorScale(float scale, bool zeros) {
  return zeros ? 1.0f : std::max(scale, std::numeric_limits<float>::min());
}

// Bits of codes, per type; 0: the type is not quantized.
struct Bits {
  int weight = 0;
  int output = 0;
  int input = 0;

  int of(Activation activation) const { return activation == Activation::kOutput ? output : input; }
};

// The keys of the moving-average range, minimum and maximum, in LayerState::memory.
const char* MemoryKey(Activation activation) {
  return activation == Activation::kOutput ? "output_range" : "input_range";
}

class QatQuantizer : public RangeQuantizer {
 public:
  QatQuantizer(Bits bits, int64_t start_step, bool per_channel, int64_t group_size, bool symmetric)
      : RangeQuantizer(bits.weight),
        bits_(bits),
        start_step_(start_step),
        per_channel_(per_channel),
        group_size_(group_size),
        symmetric_(symmetric) {}

  bool needs_step() const override { return start_step_ > 0 || !activations().empty(); }

  // The parameters of groups may exceed the reply to Step.
  bool wants_range_in_step() const override {
    return group_size_ == 0 && RangeQuantizer::wants_range_in_step();
  }

  // Whether the step crossed quant_start_step, in either direction, since the last answer.
  bool IsStale(const Layer&, const LayerState& state, Clock clock) const override {
    return bits() > 0 && state.parameters.has_value() != (clock.step >= start_step_);
  }

  std::optional<int> channel_axis(const Layer& layer) const override {
    return per_channel_ ? std::make_optional(layer.channel_axis) : std::nullopt;
  }

  int64_t group_size() const override { return group_size_; }

  std::vector<Activation> activations() const override {
    std::vector<Activation> activations;
    for (Activation activation : {Activation::kOutput, Activation::kInput}) {
      if (bits_.of(activation) > 0) activations.push_back(activation);
    }
    return activations;
  }

  std::vector<Remembered> remembered() const override {
    std::vector<Remembered> ranges;
    for (const Activation activation : activations()) {
      ranges.push_back({MemoryKey(activation), Remembered::Kind::kRange});
    }
    return ranges;
  }

  absl::Status ObserveActivation(Activation activation, const Range& range,
                                 LayerState& state) const override {
    std::vector<float>& running = state.memory[MemoryKey(activation)];
    const std::vector<float> seen = {range.minimum[0], range.maximum[0]};
    if (running.size() != seen.size()) {
      running = seen;
      return absl::OkStatus();
    }
    for (size_t i = 0; i < seen.size(); ++i) {
      running[i] = 0.99f * running[i] + 0.01f * seen[i];
    }
    return absl::OkStatus();
  }

  absl::StatusOr<ActivationAnswer> QuantizeActivation(Activation activation, Clock clock,
                                                      const LayerState& state) const override {
    ActivationAnswer answer;
    const auto found = state.memory.find(MemoryKey(activation));
    if (found == state.memory.end() || found->second.size() != 2) return answer;
    answer.range = Range{{found->second[0]}, {found->second[1]}};
    if (clock.step >= start_step_) {
      answer.parameters = Parameters(bits_.of(activation), *answer.range);
    }
    return answer;
  }

 protected:
  std::optional<QuantizationParameters> ParametersFor(const Layer& layer, const Range& range,
                                                      Clock clock, LayerState&) const override {
    if (bits() == 0 || clock.step < start_step_) return std::nullopt;
    QuantizationParameters parameters = Parameters(bits(), range);
    parameters.channel_axis = channel_axis(layer);
    parameters.group_size = group_size();
    return parameters;
  }

 private:
  QuantizationParameters Parameters(int bits, const Range& range) const {
    QuantizationParameters parameters;
    parameters.bits = bits;
    parameters.code_max = symmetric_ ? (1 << (bits - 1)) - 1 : (1 << bits) - 1;
    parameters.code_min = symmetric_ ? -parameters.code_max : 0;
    for (size_t c = 0; c < range.minimum.size(); ++c) {
      if (symmetric_) {
        AddSymmetric(MaxMagnitude(range, c), parameters);
      } else {
        AddAffine(std::min(0.0f, range.minimum[c]), std::max(0.0f, range.maximum[c]), parameters);
      }
    }
    return parameters;
  }

  static void AddSymmetric(float max, QuantizationParameters& parameters) {
    const auto levels = static_cast<float>(parameters.code_max);
    parameters.scale.push_back(FloorScale(max / levels, max == 0));
    parameters.zero_point.push_back(0);
  }

  static void AddAffine(float lo, float hi, QuantizationParameters& parameters) {
    const auto levels = static_cast<float>(parameters.code_max);
    float scale = (hi - lo) / levels;
    if (!std::isfinite(hi - lo)) {
      scale = static_cast<float>((static_cast<double>(hi) - static_cast<double>(lo)) /
                                 parameters.code_max);
    }
    scale = FloorScale(scale, lo == hi);
    const float zero_point = std::nearbyint(-lo / scale);
    parameters.scale.push_back(scale);
    parameters.zero_point.push_back(static_cast<int32_t>(std::clamp(zero_point, 0.0f, levels)));
  }

  const Bits bits_;
  const int64_t start_step_;
  const bool per_channel_;
  const int64_t group_size_;
  const bool symmetric_;
};

absl::StatusOr<std::unique_ptr<Compressor>> Create(const Options& options) {
  Bits bits;
  const std::pair<const char*, int*> types[] = {
      {"weight", &bits.weight}, {"output", &bits.output}, {"input", &bits.input}};
  for (const auto& [type, out] : types) {
    auto given = BitsFor(options, type);
    if (!given.ok()) return given.status();
    *out = *given;
  }
  const std::string& scheme = options.String("quant_scheme");
  const bool per_channel = absl::StartsWith(scheme, "per_channel");
  const int64_t group_size = options.Integer("group_size");
  if (group_size > 0 && !per_channel) {
    return absl::InvalidArgumentError(absl::StrCat(
        options.path(), ".group_size is ", group_size,
        "; it must be 0, no groups, where quant_scheme is ", Quoted(scheme),
        ": groups lie in channels, as per_channel_affine and per_channel_symmetric have them"));
  }
  return std::make_unique<QatQuantizer>(bits, options.Integer("quant_start_step"), per_channel,
                                        group_size, absl::EndsWith(scheme, "symmetric"));
}

absl::Status CheckLayer(const Options& options, const Layer& layer) {
  const int64_t group_size = options.Integer("group_size");
  if (group_size == 0) return absl::OkStatus();
  const auto refuse = [&](const auto&... range) {
    return absl::InvalidArgumentError(absl::StrCat(options.path(), ".group_size is ", group_size,
                                                   "; for layer ", Quoted(layer.name), " ",
                                                   range...));
  };
  if (layer.channel_axis != 0) {
    return refuse("it must be 0, no groups: its channels are dimension ", layer.channel_axis,
                  ", and groups need them to be the first");
  }
  int64_t columns = 1;
  for (size_t d = 1; d < layer.shape.size(); ++d) columns *= layer.shape[d];
  if (columns % group_size == 0) return absl::OkStatus();
  return refuse("it must divide ", columns, ", the weights of a channel of the shape [",
                absl::StrJoin(layer.shape, ", "), "]");
}

}  // namespace

AlgorithmInfo QatAlgorithm() {
  OptionSpec start_step;
  start_step.name = "quant_start_step";
  start_step.type = OptionType::kInteger;
  start_step.default_value = 0;
  start_step.description = "Step from which values are quantized; before it they pass unchanged.";
  OptionSpec scheme;
  scheme.name = "quant_scheme";
  scheme.type = OptionType::kString;
  scheme.default_value = "per_tensor_affine";
  scheme.choices = {"per_tensor_affine", "per_tensor_symmetric", "per_channel_affine",
                    "per_channel_symmetric"};
  scheme.description =
      "One scale per layer or, for weights, per channel; with or without a zero point.";

  OptionSpec group_size;
  group_size.name = "group_size";
  group_size.type = OptionType::kInteger;
  group_size.default_value = 0;
  group_size.description =
      "Consecutive weights of a channel that have a scale of their own, in per_channel schemes; "
      "must "
      "divide what a channel has. 0: all of them.";

  AlgorithmInfo info;
  info.name = "qat";
  info.kind = AlgorithmKind::kQuantizer;
  info.summary =
      "Quantizes weights and activations to evenly spaced values while the network trains.";
  info.reference =
      "Jacob et al., Quantization and training of neural networks for efficient "
      "integer-arithmetic-only inference, 2018, https://arxiv.org/abs/1712.05877";
  info.options = {QuantBits(2, 16), QuantTypes({"weight", "output", "input"}), start_step, scheme,
                  group_size};
  info.example = {{"quant_types", {"weight"}}, {"quant_bits", 8}};
  info.create = Create;
  info.check_layer = CheckLayer;
  return info;
}

}  // namespace nni_compression::compression
