// custom_pruner, custom_quantizer: algorithms that run in the trainer. The session stores their
// results, so that export, reports, listing and resuming work as for any other algorithm.
//
//   custom_pruner     the mask that the trainer has set; all kept before the first one
//   custom_quantizer  weights pass unchanged: the trainer writes the values that it computed
#include <memory>
#include <optional>

#include "compression/algorithms/range_quantizer.h"
#include "compression/kernels/finite.h"
#include "compression/kernels/range.h"

namespace nni_compression::compression {
namespace {

// Both get the epoch for reports only; it changes no answer.
class CustomPruner : public Pruner {
 public:
  CustomPruner() {
    traits_.refresh = Refresh::kOnWeightChange;
    traits_.needs_epoch = true;
  }

  absl::StatusOr<Mask> CalcMask(const Layer& layer, const Weight& weight, LayerState& state,
                                Clock) const override {
    const void* data = weight.values.data_ptr();
    if (!FindRange(layer.dtype, data, Channels::Of(layer.shape, std::nullopt))) {
      return NonFiniteError(layer, data, /*as_float32=*/true);
    }
    return state.mask ? *state.mask : Mask::Ones(layer.elements);
  }
};

class CustomQuantizer : public RangeQuantizer {
 public:
  CustomQuantizer() : RangeQuantizer(/*bits=*/0) { traits_.needs_epoch = true; }

 protected:
  std::optional<QuantizationParameters> ParametersFor(const Layer&, const Range&, Clock,
                                                      LayerState&) const override {
    return std::nullopt;
  }
};

std::vector<OptionSpec> TrainersOptions() {
  OptionSpec implementation;
  implementation.name = "implementation";
  implementation.type = OptionType::kString;
  implementation.default_value = "";
  implementation.description = "What the trainer calls its algorithm; for reports.";
  OptionSpec options;
  options.name = "options";
  options.type = OptionType::kObject;
  options.default_value = nlohmann::json::object();
  options.description = "Its own options, which the trainer has checked; for reports.";
  return {implementation, options};
}

template <class T>
AlgorithmInfo Info(AlgorithmKind kind) {
  AlgorithmInfo info;
  info.kind = kind;
  info.options = TrainersOptions();
  info.example = {{"implementation", "Mine"}, {"options", {{"sparsity", 0.5}}}};
  info.create = [](const Options&) { return std::make_unique<T>(); };
  return info;
}

}  // namespace

AlgorithmInfo CustomPrunerAlgorithm() {
  AlgorithmInfo info = Info<CustomPruner>(AlgorithmKind::kPruner);
  info.name = "custom_pruner";
  info.summary = "Holds the masks that an algorithm in the trainer computes.";
  return info;
}

AlgorithmInfo CustomQuantizerAlgorithm() {
  AlgorithmInfo info = Info<CustomQuantizer>(AlgorithmKind::kQuantizer);
  info.name = "custom_quantizer";
  info.summary = "Stands for an algorithm in the trainer, which quantizes weights there.";
  return info;
}

}  // namespace nni_compression::compression
