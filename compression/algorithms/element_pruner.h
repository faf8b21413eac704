// Pruners of structure `element`: each weight goes by itself.
#ifndef NNI_COMPRESSION_COMPRESSION_ALGORITHMS_ELEMENT_PRUNER_H_
#define NNI_COMPRESSION_COMPRESSION_ALGORITHMS_ELEMENT_PRUNER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "compression/algorithms/scheduled_pruner.h"
#include "compression/scopes/global.h"
#include "compression/scores/score.h"

namespace nni_compression::compression {

// Scope `layer`: prunes the share that the schedule says of each layer, the smallest scores first.
class ElementPruner : public ScheduledPruner {
 public:
  ElementPruner(const ScoreInfo& info, const Options& options,
                std::unique_ptr<const Schedule> schedule, bool by_step)
      : ScheduledPruner(info, std::move(schedule), by_step), score_(info.create(options)) {
    traits_.takes_counts = score_->bytes_per_element() == 0;
  }

  bool IsStale(const Layer& layer, const LayerState& state, Clock clock) const override;
  absl::StatusOr<Mask> CalcMask(const Layer& layer, const Weight& weight, LayerState& state,
                                Clock clock) const override;
  int64_t TotalToPrune(std::vector<CountedLayer>& layers, Clock clock) const override;
  int64_t work_bytes(const Layer& layer) const override;

 protected:
  // INVALID_ARGUMENT for a weight that is not finite, unless the weight is its score;
  // FAILED_PRECONDITION when a statistic is missing, unless `chooses` is false: then no weight is
  // pruned in addition, and any scores do.
  absl::StatusOr<Scores> ScoresOf(const Layer& layer, const Weight& weight, const LayerState& state,
                                  bool chooses) const;
  // The mask that prunes so many, nothing less than those of the last mask.
  static absl::StatusOr<Mask> Prune(const Layer& layer, const Scores& scores,
                                    const LayerState& state, int64_t count);

 private:
  const std::unique_ptr<const Score> score_;
};

// Scope `global`: the target is that of all layers of the rule together, and CountGlobally says
// which part of it is whose. No layer loses a smaller share of its weights than `least` (or the
// target, while that is less), and none a larger one than `most`.
class GlobalPruner final : public ElementPruner {
 public:
  GlobalPruner(const ScoreInfo& info, const Options& options,
               std::unique_ptr<const Schedule> schedule, bool by_step, Normalize normalize,
               SparsityLimits limits)
      : ElementPruner(info, options, std::move(schedule), by_step),
        normalize_(normalize),
        limits_(limits) {
    traits_.joint = true;
    traits_.takes_counts &= normalize_ == Normalize::kNone;
  }

  // No layer by itself.
  bool IsStale(const Layer&, const LayerState&, Clock) const override { return false; }
  bool IsStaleTogether(absl::Span<const LayerInState> layers, Clock clock) const override;
  absl::StatusOr<std::vector<Mask>> CalcMasks(std::vector<JointLayer>& layers,
                                              Clock clock) const override;
  int64_t TotalToPrune(std::vector<CountedLayer>& layers, Clock clock) const override;
  int64_t work_bytes(const Layer& layer) const override;

 private:
  // Sets the limits of a RankedLayer or CountedLayer.
  template <class AnyLayer>
  void Limit(AnyLayer& layer, double target) const;

  const Normalize normalize_;
  const SparsityLimits limits_;
};

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_ALGORITHMS_ELEMENT_PRUNER_H_
