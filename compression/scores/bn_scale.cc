// The scale of the normalization that follows a layer (Liu et al. 2017): |gamma| of each channel. A
// weight of one dimension is such a scale itself.
#include <cmath>
#include <memory>

#include "compression/kernels/filters.h"
#include "compression/scores/score.h"

namespace nni_compression::compression {
namespace {

class BatchNormScale : public FilterScore {
 public:
  absl::StatusOr<std::vector<double>> Of(const Layer& layer, const Weight& weight,
                                         const Statistics& statistics) const override {
    if (layer.shape.size() == 1) {
      return FilterAbsSums(layer.dtype, weight.values.data_ptr(), Channels::Of(layer.shape, 0));
    }
    absl::StatusOr<StatisticTotal> scale =
        TotalOf(StatisticKind::kParameter, layer, statistics, "score bn_scale");
    if (!scale.ok()) return scale.status();
    for (double& value : scale->values) value = std::abs(value);
    return std::move(scale->values);
  }
};

}  // namespace

ScoreInfo BatchNormScaleScore() {
  ScoreInfo info;
  info.name = "bn_scale";
  info.formula =
      "abs(gamma), the scale of the BatchNorm that follows; abs(w) of a BatchNorm itself";
  info.can_normalize = true;
  info.statistics = {StatisticKind::kParameter};
  info.statistics_of_vectors = false;
  info.create_for_filters = [](const Options&) { return std::make_unique<const BatchNormScale>(); };
  return info;
}

}  // namespace nni_compression::compression
