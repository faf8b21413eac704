#include "compression/session/snapshot.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {

LayerSnapshot::LayerSnapshot(Answerer answerer, std::shared_ptr<const Layer> layer,
                             std::shared_ptr<const LayerState> state,
                             std::shared_ptr<const Compressor> compressor, Clock clock)
    : answerer_(std::move(answerer)),
      layer_(std::move(layer)),
      state_(std::move(state)),
      compressor_(std::move(compressor)),
      quantizer_(dynamic_cast<const Quantizer*>(compressor_.get())),
      clock_(clock) {}

std::optional<double> LayerSnapshot::TargetSparsity() const {
  const auto& pruner = static_cast<const Pruner&>(*compressor_);
  return pruner.traits().joint ? std::nullopt : CheckedTarget(pruner, clock_);
}

absl::StatusOr<QuantizedWeight> LayerSnapshot::QuantizeWeight(const Buffer& weight,
                                                              QuantizeReply reply) const {
  if (weight.size() != ByteLength(layer_->dtype, layer_->elements)) {
    return absl::InternalError(absl::StrCat("the weight of layer ", Quoted(layer_->name), " has ",
                                            weight.size(), " bytes"));
  }
  LayerState scratch = *state_;
  return CheckedQuantize(answerer_, *quantizer_, *layer_, reply, [&] {
    return quantizer_->QuantizeWeight(*layer_, weight.AsTensor(layer_->dtype, layer_->shape), reply,
                                      clock_, scratch);
  });
}

absl::StatusOr<std::optional<QuantizationParameters>> LayerSnapshot::CommonParameters() const {
  std::optional<QuantizationParameters> parameters;
  if (quantizer_->traits().accepts_range) {
    const auto scales = static_cast<size_t>(this->scales());
    const Range range = {std::vector<float>(scales, -1), std::vector<float>(scales, 1)};
    LayerState scratch = *state_;
    auto answer = CheckedQuantize(answerer_, *quantizer_, *layer_, QuantizeReply::kParameters, [&] {
      return quantizer_->QuantizeRange(*layer_, range, clock_, scratch);
    });
    if (!answer.ok()) return answer.status();
    parameters = std::move(answer->parameters);
  } else {
    parameters = state_->parameters;
  }
  if (parameters) {
    parameters->scale = {};
    parameters->zero_point = {};
  }
  return parameters;
}

}  // namespace nni_compression::compression
