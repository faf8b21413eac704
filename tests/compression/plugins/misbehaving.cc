// A plugin whose algorithms do what no algorithm should; each is named after that.
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "compression/plugin.h"

namespace nni_compression::compression {
namespace {

using Calculate = std::function<absl::StatusOr<Mask>(const Layer&, LayerState&)>;

class BadPruner : public Pruner {
 public:
  explicit BadPruner(Calculate calculate) : calculate_(std::move(calculate)) {}

  absl::StatusOr<Mask> CalcMask(const Layer& layer, const Weight&, LayerState& state,
                                Clock) const override {
    return calculate_(layer, state);
  }

 private:
  const Calculate calculate_;
};

struct Answer {
  float scale = 1;
  int scales = 1;
  int64_t extra_bytes = 0;
  std::optional<int> axis;
  int64_t group_size = 0;
  bool joint = false;
  uint8_t byte = 0;  // of which the data is made
  int32_t code_max = 255;
  bool by_dorefa = false;
};

// Answers as it should where the first weight is 0.
class BadQuantizer : public Quantizer {
 public:
  explicit BadQuantizer(Answer answer) : answer_(answer) {
    traits_.bits = 8;
    traits_.group_size = answer.group_size;
    traits_.joint = answer.joint;
  }

  absl::StatusOr<QuantizedWeight> QuantizeWeight(const Layer& layer, const Weight& weight,
                                                 QuantizeReply reply, Clock,
                                                 LayerState&) const override {
    const bool good = *static_cast<const float*>(weight.values.data_ptr()) == 0;
    const Answer answer = good ? Answer() : answer_;
    QuantizedWeight result;
    result.parameters.emplace();
    result.parameters->code_max = answer.code_max;
    if (answer.by_dorefa) {
      result.parameters->formula = Formula::kDoReFa;
      result.parameters->rounding = Rounding::kDoReFa;
    } else {
      result.parameters->scale.assign(static_cast<size_t>(answer.scales), answer.scale);
      result.parameters->zero_point.resize(static_cast<size_t>(answer.scales));
    }
    result.parameters->channel_axis = answer.axis;
    if (reply == QuantizeReply::kParameters) return result;
    if (reply == QuantizeReply::kValues) result.dtype = layer.dtype;
    result.data = Buffer::Allocate(ByteLength(result.dtype, layer.elements) + answer.extra_bytes);
    std::memset(result.data.data(), answer.byte, static_cast<size_t>(result.data.size()));
    return result;
  }

 private:
  const Answer answer_;
};

// Says that it prunes more than there is.
class BoastfulPruner : public Pruner {
 public:
  BoastfulPruner() { traits_.needs_epoch = true; }

  absl::StatusOr<Mask> CalcMask(const Layer& layer, const Weight&, LayerState&,
                                Clock) const override {
    return Mask::Ones(layer.elements);
  }
  std::optional<double> TargetSparsity(Clock clock) const override {
    if (clock.epoch == 1) throw std::runtime_error("no idea");
    return clock.epoch == 0 ? 1.5 : NAN;
  }
};

AlgorithmInfo Info(const std::string& name, AlgorithmKind kind,
                   std::function<std::unique_ptr<Compressor>()> make) {
  AlgorithmInfo info;
  info.name = name;
  info.kind = kind;
  info.summary = "For tests.";
  info.example = nlohmann::json::object();
  info.create =
      [make = std::move(make)](const Options&) -> absl::StatusOr<std::unique_ptr<Compressor>> {
    return make();
  };
  return info;
}

AlgorithmInfo Pruning(const std::string& name, const Calculate& calculate) {
  return Info(name, AlgorithmKind::kPruner,
              [calculate] { return std::make_unique<BadPruner>(calculate); });
}

AlgorithmInfo Quantizing(const std::string& name, const Answer& answer) {
  return Info(name, AlgorithmKind::kQuantizer,
              [answer] { return std::make_unique<BadQuantizer>(answer); });
}

}  // namespace
}  // namespace nni_compression::compression

NNI_COMPRESSION_PLUGIN() {
  using namespace nni_compression::compression;  // NOLINT
  using MaskOr = absl::StatusOr<Mask>;
  Answer nan_scale, many_scales, tiny_scale, long_data, short_data, wrong_axis, wrong_groups,
      joint_quantizer, wide_codes, nan_data, other_formula;
  nan_scale.scale = NAN;
  many_scales.scales = 5;
  tiny_scale.scale = 1e-45f;
  long_data.extra_bytes = 1;
  short_data.extra_bytes = -1;
  wrong_axis.axis = 7;
  wrong_groups.group_size = 3;
  joint_quantizer.joint = true;
  wide_codes.code_max = 256;
  nan_data.byte = 0xff;
  nan_data.code_max = 100;
  other_formula.by_dorefa = true;
  return {
      Pruning("throws",
              [](const Layer&, LayerState&) -> MaskOr { throw std::runtime_error("I give up"); }),
      Pruning("throws_a_number", [](const Layer&, LayerState&) -> MaskOr { throw 42; }),
      Pruning("hangs",
              [](const Layer&, LayerState&) -> MaskOr {
                while (true) pause();
              }),
      Pruning(
          "wrong_mask",
          [](const Layer& layer, LayerState&) -> MaskOr { return Mask::Ones(layer.elements + 8); }),
      Pruning("huge_state",
              [](const Layer& layer, LayerState& state) -> MaskOr {
                state.opaque.resize(64 << 20);
                return Mask::Ones(layer.elements);
              }),
      Quantizing("nan_scale", nan_scale),
      Quantizing("many_scales", many_scales),
      Quantizing("tiny_scale", tiny_scale),
      Quantizing("long_data", long_data),
      Quantizing("short_data", short_data),
      Quantizing("wide_codes", wide_codes),
      Quantizing("nan_data", nan_data),
      Quantizing("other_formula", other_formula),
      Quantizing("wrong_axis", wrong_axis),
      Quantizing("wrong_groups", wrong_groups),
      Quantizing("joint_quantizer", joint_quantizer),
      Info("wrong_kind", AlgorithmKind::kPruner,
           [] { return std::make_unique<BadQuantizer>(Answer()); }),
      Info("nothing", AlgorithmKind::kPruner, [] { return nullptr; }),
      Info("boastful", AlgorithmKind::kPruner, [] { return std::make_unique<BoastfulPruner>(); }),
  };
}
