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
#include "absl/strings/str_replace.h"
#include "compression/algorithms/range_quantizer.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {
namespace {

// 1 for a channel of zeros.
float FloorScale(float scale, bool zeros) {
  return zeros ? 1.0f : std::max(scale, std::numeric_limits<float>::min());
}

// The codes of a type.
struct Grid {
  int bits = 0;  // 0: the type is not quantized
  bool symmetric = false;
};

struct Grids {
  Grid weight;
  Grid output;
  Grid input;

  const Grid& of(Activation activation) const {
    return activation == Activation::kOutput ? output : input;
  }
};

constexpr char kAnyTarget[] = "any";
constexpr int kTargetBits = 8;

// A runtime: the types that its integer kernels need quantized, and the schemes that they take, of
// weights and of activations. The first of each is the default.
struct Target {
  const char* name;
  std::vector<std::string> types;
  std::vector<std::string> weight;
  std::vector<std::string> activation;

  const std::vector<std::string>& of(absl::string_view type) const {
    return type == "weight" ? weight : activation;
  }
};

const std::vector<Target>& Targets() {
  // Zero points of weights cost both runtimes more than they gain, and per channel ONNX Runtime
  // wants them equal. Affine activations fill their 8 bits, so the graph needs no Clip. ONNX
  // Runtime has no convolution of integers with a float result, which OpenVINO has.
  static const auto* const targets =
      new std::vector<Target>{{"onnxruntime",
                               {"weight", "output", "input"},
                               {"per_channel_symmetric", "per_tensor_symmetric"},
                               {"per_tensor_affine", "per_tensor_symmetric"}},
                              {"openvino",
                               {"weight", "input"},
                               {"per_channel_symmetric", "per_tensor_symmetric"},
                               {"per_tensor_affine", "per_tensor_symmetric"}}};
  return *targets;
}

// The keys of the moving-average range, minimum and maximum, in LayerState::memory.
const char* MemoryKey(Observation::Kind kind) {
  return kind == Observation::Kind::kOutputRange ? "output_range" : "input_range";
}

class QatQuantizer : public RangeQuantizer {
 public:
  QatQuantizer(Grids grids, int64_t start_step, bool per_channel, int64_t group_size)
      : RangeQuantizer(grids.weight.bits), grids_(grids), start_step_(start_step) {
    traits_.needs_step = start_step > 0;
    traits_.per_channel = per_channel;
    traits_.group_size = group_size;
    // The parameters of groups may exceed the reply to Step.
    traits_.wants_range_in_step &= group_size == 0;
    for (const Activation activation : {Activation::kOutput, Activation::kInput}) {
      if (grids_.of(activation).bits == 0) continue;
      traits_.observes.push_back(ObservationOf(activation));
      traits_.remembered.push_back(
          {MemoryKey(ObservationOf(activation)), Remembered::Kind::kRange});
    }
  }

  // Whether the step crossed quant_start_step, in either direction, since the last answer.
  bool IsStale(const Layer&, const LayerState& state, Clock clock) const override {
    return traits_.bits > 0 && state.parameters.has_value() != (clock.step >= start_step_);
  }

  absl::Status Observe(const Layer&, const Observation& observation, Clock,
                       LayerState& state) const override {
    std::vector<float>& running = state.memory[MemoryKey(observation.kind)];
    const std::vector<float> seen = {observation.range.minimum[0], observation.range.maximum[0]};
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
    const auto found = state.memory.find(MemoryKey(ObservationOf(activation)));
    if (found == state.memory.end() || found->second.size() != 2) return answer;
    answer.range = Range{{found->second[0]}, {found->second[1]}};
    if (clock.step >= start_step_) {
      answer.parameters = Parameters(grids_.of(activation), *answer.range);
    }
    return answer;
  }

 protected:
  std::optional<QuantizationParameters> ParametersFor(const Layer& layer, const Range& range,
                                                      Clock clock, LayerState&) const override {
    if (traits_.bits == 0 || clock.step < start_step_) return std::nullopt;
    QuantizationParameters parameters = Parameters(grids_.weight, range);
    parameters.channel_axis = channel_axis(layer);
    parameters.group_size = traits_.group_size;
    return parameters;
  }

 private:
  static QuantizationParameters Parameters(const Grid& grid, const Range& range) {
    QuantizationParameters parameters;
    parameters.bits = grid.bits;
    parameters.code_max = grid.symmetric ? (1 << (grid.bits - 1)) - 1 : (1 << grid.bits) - 1;
    parameters.code_min = grid.symmetric ? -parameters.code_max : 0;
    for (size_t c = 0; c < range.minimum.size(); ++c) {
      if (grid.symmetric) {
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

  const Grids grids_;
  const int64_t start_step_;
};

bool IsPerChannel(absl::string_view scheme) { return absl::StartsWith(scheme, "per_channel"); }

// Activations have one scale, also where one scheme is given for all types: then it says whether
// they have a zero point.
absl::StatusOr<std::string> SchemeFor(const Options& options, const std::string& type) {
  if (auto s = CheckHas(options, "quant_scheme", "a scheme", type); !s.ok()) return s;
  const std::string& scheme = options.StringFor("quant_scheme", type);
  if (type == "weight" || !IsPerChannel(scheme)) return scheme;
  if (!options.json().at("quant_scheme").is_object()) {
    return absl::StrReplaceAll(scheme, {{"per_channel", "per_tensor"}});
  }
  return absl::InvalidArgumentError(
      absl::StrCat(options.path(), ".quant_scheme.", type, " is ", Quoted(scheme),
                   "; it must be one of per_tensor_affine, per_tensor_symmetric: only weights have "
                   "a scale per channel"));
}

absl::Status CheckTarget(const Options& options, const std::string& type, const std::string& scheme,
                         int bits) {
  const std::string& name = options.String("target");
  for (const Target& target : Targets()) {
    if (name != target.name) continue;
    const auto refuse = [&](absl::string_view option, const auto& value, const auto&... allowed) {
      return absl::InvalidArgumentError(
          absl::StrCat(options.path(), ".", option, " is ", value, " for ", Quoted(type),
                       "; it must be ", allowed..., " where target is ", Quoted(name)));
    };
    const std::vector<std::string>& schemes = target.of(type);
    if (std::find(schemes.begin(), schemes.end(), scheme) == schemes.end()) {
      return refuse("quant_scheme", Quoted(scheme), "one of ", absl::StrJoin(schemes, ", "));
    }
    if (bits > kTargetBits) return refuse("quant_bits", bits, "at most ", kTargetBits);
  }
  return absl::OkStatus();
}

absl::StatusOr<Grid> GridFor(const Options& options, const std::string& type) {
  const auto bits = BitsFor(options, type);
  if (!bits.ok()) return bits.status();
  if (*bits == 0) return Grid();
  const auto scheme = SchemeFor(options, type);
  if (!scheme.ok()) return scheme.status();
  if (auto s = CheckTarget(options, type, *scheme, *bits); !s.ok()) return s;
  return Grid{*bits, absl::EndsWith(*scheme, "symmetric")};
}

std::string WeightScheme(const Options& options) {
  const nlohmann::json& scheme = options.json().at("quant_scheme");
  return scheme.is_object() ? scheme.value("weight", "per_tensor_affine")
                            : scheme.get<std::string>();
}

absl::StatusOr<std::unique_ptr<Compressor>> Create(const Options& options) {
  Grids grids;
  const std::pair<const char*, Grid*> types[] = {
      {"weight", &grids.weight}, {"output", &grids.output}, {"input", &grids.input}};
  for (const auto& [type, out] : types) {
    const auto grid = GridFor(options, type);
    if (!grid.ok()) return grid.status();
    *out = *grid;
  }
  const std::string scheme = WeightScheme(options);
  const int64_t group_size = options.Integer("group_size");
  const auto refuse_groups = [&](const auto&... where) {
    return absl::InvalidArgumentError(absl::StrCat(options.path(), ".group_size is ", group_size,
                                                   "; it must be 0, no groups, where ", where...));
  };
  if (group_size > 0 && !IsPerChannel(scheme)) {
    return refuse_groups(
        "quant_scheme is ", Quoted(scheme),
        ": groups lie in channels, as per_channel_affine and per_channel_symmetric have them");
  }
  if (group_size > 0 && options.String("target") != kAnyTarget) {
    return refuse_groups("target is ", Quoted(options.String("target")),
                         ": its integer kernels take a scale per channel");
  }
  return std::make_unique<QatQuantizer>(grids, options.Integer("quant_start_step"),
                                        IsPerChannel(scheme), group_size);
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
  scheme.type = OptionType::kStringPerType;
  scheme.default_value = "per_tensor_affine";
  scheme.choices = {"per_tensor_affine", "per_tensor_symmetric", "per_channel_affine",
                    "per_channel_symmetric"};
  scheme.description =
      "One scale per layer or, for weights, per channel; with or without a zero point. A scheme, "
      "or one per type.";

  OptionSpec target;
  target.name = "target";
  target.type = OptionType::kString;
  target.default_value = kAnyTarget;
  target.choices = {kAnyTarget};
  for (const Target& each : Targets()) {
    target.choices.push_back(each.name);
    target.presets[each.name] = {{"quant_types", each.types},
                                 {"quant_scheme",
                                  {{"weight", each.weight[0]},
                                   {"output", each.activation[0]},
                                   {"input", each.activation[0]}}}};
  }
  target.description =
      "The runtime whose integer kernels shall compute the model: its types and schemes are "
      "the defaults, and other schemes are refused.";

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
  info.options = {QuantBits(2, 16), QuantTypes({"weight", "output", "input"}),
                  start_step,       scheme,
                  group_size,       target};
  info.example = {{"quant_types", {"weight"}}, {"quant_bits", 8}};
  info.create = Create;
  info.check_layer = CheckLayer;
  return info;
}

}  // namespace nni_compression::compression
