// The norms of filters (Li et al. 2017): L1, the sum of |w|, and L2, the root of the sum of w^2.
#include <memory>
#include <utility>

#include "compression/kernels/filters.h"
#include "compression/scores/score.h"

namespace nni_compression::compression {
namespace {

class Norm : public FilterScore {
 public:
  explicit Norm(int power) : power_(power) {}

  absl::StatusOr<std::vector<double>> Of(const Layer& layer, const Weight& weight,
                                         const Statistics&) const override {
    const Channels filters = Channels::Of(layer.shape, layer.channel_axis);
    const void* const data = weight.values.data_ptr();
    return power_ == 1 ? FilterAbsSums(layer.dtype, data, filters)
                       : FilterNorms(layer.dtype, data, filters);
  }

 private:
  const int power_;
};

ScoreInfo NormScore(std::string name, std::string formula, int power) {
  ScoreInfo info;
  info.name = std::move(name);
  info.formula = std::move(formula);
  info.can_normalize = true;
  info.create_for_filters = [power](const Options&) { return std::make_unique<const Norm>(power); };
  return info;
}

}  // namespace

ScoreInfo L1Score() { return NormScore("l1", "sum of abs(w) over the filter", 1); }
ScoreInfo L2Score() { return NormScore("l2", "sqrt(sum of w^2 over the filter)", 2); }

}  // namespace nni_compression::compression
