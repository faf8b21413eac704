// A plugin whose algorithms do what no algorithm should; each is named after that.
#include <unistd.h>

#include <cmath>
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
};

class BadQuantizer : public Quantizer {
 public:
  explicit BadQuantizer(Answer answer) : answer_(answer) {}

  absl::StatusOr<QuantizedWeight> QuantizeWeight(const Layer& layer, const Weight&, QuantizeReply,
                                                 Clock, LayerState&) const override {
    QuantizedWeight result;
    result.parameters.emplace();
    result.parameters->scale.assign(static_cast<size_t>(answer_.scales), answer_.scale);
    result.parameters->zero_point.resize(static_cast<size_t>(answer_.scales));
    result.data = Buffer::Allocate(layer.elements + answer_.extra_bytes);
    return result;
  }
  std::optional<int> channel_axis(const Layer&) const override { return answer_.axis; }
  int bits() const override { return 8; }

 private:
  const Answer answer_;
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
  Answer nan_scale, many_scales, long_data, wrong_axis;
  nan_scale.scale = NAN;
  many_scales.scales = 5;
  long_data.extra_bytes = 1;
  wrong_axis.axis = 7;
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
      Quantizing("long_data", long_data),
      Quantizing("wrong_axis", wrong_axis),
      Info("wrong_kind", AlgorithmKind::kPruner,
           [] { return std::make_unique<BadQuantizer>(Answer()); }),
      Info("nothing", AlgorithmKind::kPruner, [] { return nullptr; }),
  };
}
