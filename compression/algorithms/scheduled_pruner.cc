#include "compression/algorithms/scheduled_pruner.h"

#include <algorithm>

namespace nni_compression::compression {

int64_t CountToPrune(int64_t elements, double sparsity) {
  const auto count = static_cast<int64_t>(static_cast<double>(elements) * sparsity);
  return std::clamp<int64_t>(count, 0, elements);
}

ScheduledPruner::ScheduledPruner(const ScoreInfo& score, std::unique_ptr<const Schedule> schedule,
                                 bool by_step)
    : schedule_(std::move(schedule)), by_step_(by_step) {
  if (schedule_->changes()) traits_.refresh = Refresh::kWhenStale;
  traits_.needs_epoch = schedule_->changes() && !by_step_;
  traits_.needs_step = schedule_->changes() && by_step_;
  traits_.statistics = score.statistics;
  traits_.statistics_of_vectors = score.statistics_of_vectors;
}

std::optional<double> ScheduledPruner::Due(Clock clock) const { return schedule_->Due(Now(clock)); }

std::optional<double> ScheduledPruner::TargetSparsity(Clock clock) const {
  return schedule_->Target(Now(clock));
}

}  // namespace nni_compression::compression
