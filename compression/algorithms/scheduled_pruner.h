// What every pruner that is built in has of its schedule.
#ifndef NNI_COMPRESSION_COMPRESSION_ALGORITHMS_SCHEDULED_PRUNER_H_
#define NNI_COMPRESSION_COMPRESSION_ALGORITHMS_SCHEDULED_PRUNER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "compression/algorithms/algorithm.h"
#include "compression/schedules/schedule.h"
#include "compression/scores/score.h"

namespace nni_compression::compression {

// How many of n weights a sparsity prunes: trunc(n * sparsity), in double.
int64_t CountToPrune(int64_t elements, double sparsity);

// When masks are made, and for which sparsity. Pruned weights stay pruned, and layers are stale
// when the target asks for more than their masks prune, so the masks are the only state.
class ScheduledPruner : public Pruner {
 public:
  std::optional<double> TargetSparsity(Clock clock) const override;

 protected:
  ScheduledPruner(const ScoreInfo& score, std::unique_ptr<const Schedule> schedule, bool by_step);

  // The target sparsity if masks are made now; nullopt: they are not.
  std::optional<double> Due(Clock clock) const;

 private:
  int64_t Now(Clock clock) const { return by_step_ ? clock.step : clock.epoch; }

  const std::unique_ptr<const Schedule> schedule_;
  const bool by_step_;
};

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_ALGORITHMS_SCHEDULED_PRUNER_H_
