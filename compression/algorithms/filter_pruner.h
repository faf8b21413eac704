// Pruners of structure `filter`: output channels go as a whole, with those that depend on them.
#ifndef NNI_COMPRESSION_COMPRESSION_ALGORITHMS_FILTER_PRUNER_H_
#define NNI_COMPRESSION_COMPRESSION_ALGORITHMS_FILTER_PRUNER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "compression/algorithms/scheduled_pruner.h"
#include "compression/scopes/global.h"
#include "compression/scopes/global_filters.h"
#include "compression/scores/score.h"
#include "compression/structures/filters.h"

namespace nni_compression::compression {

// Prunes filters, the smallest scores first. With scope `layer` each layer, or dependency group,
// loses the share of its filters that the schedule says. With scope `global` all of the rule lose
// that share of their weights together, and at most one step more.
class FilterPruner final : public ScheduledPruner {
 public:
  struct Global {
    Normalize normalize = Normalize::kNone;
    SparsityLimits limits;
  };

  // `global`: nullopt with scope `layer`.
  FilterPruner(const ScoreInfo& info, const Options& options,
               std::unique_ptr<const Schedule> schedule, bool by_step, int64_t round_to,
               std::optional<Global> global);

  bool IsStale(const Layer& layer, const LayerState& state, Clock clock) const override;
  bool IsStaleTogether(absl::Span<const LayerInState> layers, Clock clock) const override;
  absl::StatusOr<Mask> CalcMask(const Layer& layer, const Weight& weight, LayerState& state,
                                Clock clock) const override;
  absl::StatusOr<std::vector<Mask>> CalcMasks(std::vector<JointLayer>& layers,
                                              Clock clock) const override;
  int64_t work_bytes(const Layer& layer) const override;

 private:
  // What a set loses now: with scope `layer`, at_least.
  RankedSet Ranked(const FilterSet& set, double sparsity) const;

  // What sets have lost, added up.
  struct Progress {
    void Add(const FilterSet& set, const RankedSet& ranked);

    int64_t elements = 0;
    int64_t lost = 0;
    bool lacks = false;            // some set has lost less than it has to
    bool could_lose_more = false;  // some set
  };

  // Whether the sets of a rule have lost all that they are to lose.
  bool IsMet(const Progress& progress, double sparsity) const;

  // The units that are removed then, by set.
  absl::StatusOr<std::vector<std::vector<bool>>> Removed(const std::vector<FilterSet>& sets,
                                                         absl::Span<const JointLayer> layers,
                                                         double sparsity) const;

  // By unit.
  absl::StatusOr<std::vector<double>> ScoresOf(const FilterSet& set,
                                               absl::Span<const JointLayer> layers) const;

  const std::unique_ptr<const FilterScore> score_;
  const int64_t round_to_;
  const std::optional<Global> global_;
};

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_ALGORITHMS_FILTER_PRUNER_H_
