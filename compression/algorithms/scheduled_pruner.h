// Every pruner that is built in: a score, a scope and a schedule.
#ifndef NNI_COMPRESSION_COMPRESSION_ALGORITHMS_SCHEDULED_PRUNER_H_
#define NNI_COMPRESSION_COMPRESSION_ALGORITHMS_SCHEDULED_PRUNER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "compression/algorithms/algorithm.h"
#include "compression/schedules/schedule.h"
#include "compression/scopes/global.h"
#include "compression/scores/score.h"

namespace nni_compression::compression {

// How many of n weights a sparsity prunes: trunc(n * sparsity), in double.
int64_t CountToPrune(int64_t elements, double sparsity);

// Scope `layer`: prunes the share that the schedule says of each layer, the smallest scores first;
// pruned weights stay pruned. A layer is stale when the target exceeds the sparsity of its mask, so
// the mask is the only state.
class ScheduledPruner : public Pruner {
 public:
  // `statistics`: those of the score.
  ScheduledPruner(std::unique_ptr<const Score> score, std::vector<StatisticKind> statistics,
                  std::unique_ptr<const Schedule> schedule, bool by_step)
      : score_(std::move(score)), schedule_(std::move(schedule)), by_step_(by_step) {
    if (schedule_->changes()) traits_.refresh = Refresh::kWhenStale;
    traits_.needs_epoch = schedule_->changes() && !by_step_;
    traits_.needs_step = schedule_->changes() && by_step_;
    traits_.takes_counts = score_->bytes_per_element() == 0;
    traits_.statistics = std::move(statistics);
  }

  bool IsStale(const Layer& layer, const LayerState& state, Clock clock) const override;
  absl::StatusOr<Mask> CalcMask(const Layer& layer, const Weight& weight, LayerState& state,
                                Clock clock) const override;
  int64_t TotalToPrune(std::vector<CountedLayer>& layers, Clock clock) const override;
  int64_t work_bytes(const Layer& layer) const override;
  std::optional<double> TargetSparsity(Clock clock) const override;

 protected:
  // The target sparsity if masks are made now; nullopt: they are not.
  std::optional<double> Due(Clock clock) const;
  // INVALID_ARGUMENT for a weight that is not finite, unless the weight is its score;
  // FAILED_PRECONDITION when a statistic is missing, unless `chooses` is false: then no weight is
  // pruned in addition, and any scores do.
  absl::StatusOr<Scores> ScoresOf(const Layer& layer, const Weight& weight, const LayerState& state,
                                  bool chooses) const;
  // The mask that prunes so many, nothing less than those of the last mask.
  static absl::StatusOr<Mask> Prune(const Layer& layer, const Scores& scores,
                                    const LayerState& state, int64_t count);

 private:
  int64_t Now(Clock clock) const { return by_step_ ? clock.step : clock.epoch; }

  const std::unique_ptr<const Score> score_;
  const std::unique_ptr<const Schedule> schedule_;
  const bool by_step_;
};

// Scope `global`: the target is that of all layers of the rule together, and CountGlobally says
// which part of it is whose. No layer loses a smaller share of its weights than `min_sparsity` (or
// the target, while that is less), and none a larger one than `max_sparsity`.
class GlobalPruner final : public ScheduledPruner {
 public:
  struct Limits {
    double min_sparsity = 0;
    double max_sparsity = 1;
  };

  GlobalPruner(std::unique_ptr<const Score> score, std::vector<StatisticKind> statistics,
               std::unique_ptr<const Schedule> schedule, bool by_step, Normalize normalize,
               Limits limits)
      : ScheduledPruner(std::move(score), std::move(statistics), std::move(schedule), by_step),
        normalize_(normalize),
        limits_(limits) {
    traits_.joint = true;
    traits_.takes_counts &= normalize_ == Normalize::kNone;
  }

  // No layer by itself.
  bool IsStale(const Layer&, const LayerState&, Clock) const override { return false; }
  bool IsStaleTogether(int64_t elements, int64_t pruned, Clock clock) const override;
  absl::StatusOr<std::vector<Mask>> CalcMasks(std::vector<JointLayer>& layers,
                                              Clock clock) const override;
  int64_t TotalToPrune(std::vector<CountedLayer>& layers, Clock clock) const override;
  int64_t work_bytes(const Layer& layer) const override;

 private:
  // Sets the limits of a RankedLayer or CountedLayer.
  template <class AnyLayer>
  void Limit(AnyLayer& layer, double target) const;

  const Normalize normalize_;
  const Limits limits_;
};

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_ALGORITHMS_SCHEDULED_PRUNER_H_
