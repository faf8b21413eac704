// What exporters see of a session.
#ifndef NNI_COMPRESSION_COMPRESSION_SESSION_SNAPSHOT_H_
#define NNI_COMPRESSION_COMPRESSION_SESSION_SNAPSHOT_H_

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "compression/session/check_answer.h"

namespace nni_compression::compression {

// A compressed layer of a session as it was at one moment. It shares what it needs, so the session
// may go on, or end, while the snapshot is used, and taking one copies nothing that is large.
// Whatever an algorithm answers was checked; one that throws or answers nonsense is INTERNAL.
// Immutable, hence thread-safe.
class LayerSnapshot {
 public:
  // `compressor` is a Quantizer or a Pruner.
  LayerSnapshot(Answerer answerer, std::shared_ptr<const Layer> layer,
                std::shared_ptr<const LayerState> state,
                std::shared_ptr<const Compressor> compressor, Clock clock);

  const Layer& layer() const { return *layer_; }
  const std::optional<Mask>& mask() const { return state_->mask; }

  // Whether weights are rounded; otherwise nothing but a mask changes them.
  bool rounds() const { return quantizer_ != nullptr && quantizer_->bits() > 0; }

  // Scales that a weight has. Only if rounds().
  int64_t scales() const { return quantizer_->channels(*layer_); }

  // Of a pruner.
  std::optional<double> TargetSparsity() const;

  // Codes or values of a weight with the layer's dtype and shape, all elements finite (otherwise
  // INVALID_ARGUMENT), as the session would have answered. Only if rounds().
  absl::StatusOr<QuantizedWeight> QuantizeWeight(const Buffer& weight, QuantizeReply reply) const;

  // What the parameters of every weight have in common that is not all zeros: they are without
  // scales and zero points. Nothing when weights pass unchanged at this step, or when that is
  // known only once a weight was answered, and none was. Only if rounds().
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
