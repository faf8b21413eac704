// What exporters see of a session.
#ifndef NNI_COMPRESSION_COMPRESSION_SESSION_SNAPSHOT_H_
#define NNI_COMPRESSION_COMPRESSION_SESSION_SNAPSHOT_H_

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "compression/session/check_answer.h"

namespace nni_compression::compression {

// A snapshot of a compressed layer of a session. It shares immutable data, so the session may
// change or end while the snapshot is used, and taking one is cheap. Answers of the algorithm are
// checked; an exception or an invalid answer is INTERNAL. Immutable, hence thread-safe.
class LayerSnapshot {
 public:
  // `compressor` is a Quantizer or a Pruner.
  LayerSnapshot(Answerer answerer, std::shared_ptr<const Layer> layer,
                std::shared_ptr<const LayerState> state,
                std::shared_ptr<const Compressor> compressor, Clock clock);

  const Layer& layer() const { return *layer_; }
  const std::optional<Mask>& mask() const { return state_->mask; }

  // Whether weights are quantized; otherwise only a mask changes them.
  bool rounds() const { return quantizer_ != nullptr && quantizer_->traits().bits > 0; }

  // The number of scales of a weight. Only if rounds().
  int64_t scales() const { return quantizer_->channels(*layer_); }

  // Only for a pruner. nullopt for a layer of a joint rule.
  std::optional<double> TargetSparsity() const;

  // Codes or values of a weight with the layer's dtype and shape, all elements finite (otherwise
  // INVALID_ARGUMENT), as the session would have answered. Only if rounds().
  absl::StatusOr<QuantizedWeight> QuantizeWeight(const Buffer& weight, QuantizeReply reply) const;

  // The parameters, without scales and zero points, that all weights except all-zero ones have in
  // common. nullopt when weights pass unchanged at this step, or when the parameters are known only
  // after a first answer, and there was none. Only if rounds().
  absl::StatusOr<std::optional<QuantizationParameters>> CommonParameters() const;

 private:
  Answerer answerer_;
  std::shared_ptr<const Layer> layer_;
  std::shared_ptr<const LayerState> state_;
  std::shared_ptr<const Compressor> compressor_;
  const Quantizer* quantizer_;  // compressor_; null: a pruner
  Clock clock_;
};

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_SESSION_SNAPSHOT_H_
