// First-order Taylor expansion (Molchanov et al. 2019): how much the loss changes without a weight,
// squared, is about (w * dL/dw)^2. A filter has the sum over its weights and over batches.
#include <memory>

#include "compression/scores/score.h"

namespace nni_compression::compression {
namespace {

class Taylor : public FilterScore {
 public:
  absl::StatusOr<std::vector<double>> Of(const Layer& layer, const Weight&,
                                         const Statistics& statistics) const override {
    absl::StatusOr<StatisticTotal> total =
        TotalOf(StatisticKind::kFilterTaylor, layer, statistics, "score taylor");
    if (!total.ok()) return total.status();
    return std::move(total->values);
  }
};

}  // namespace

ScoreInfo TaylorScore() {
  ScoreInfo info;
  info.name = "taylor";
  info.formula = "sum over batches and over the filter of (w * dL/dw)^2";
  info.can_normalize = true;
  info.statistics = {StatisticKind::kFilterTaylor};
  info.create_for_filters = [](const Options&) { return std::make_unique<const Taylor>(); };
  return info;
}

}  // namespace nni_compression::compression
