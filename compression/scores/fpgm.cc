// Filter pruning via geometric median (He et al. 2019): the sum of the Euclidean distances of a
// filter to all others of the layer. Filters near the geometric median are like the others.
#include <memory>

#include "absl/strings/str_cat.h"
#include "compression/kernels/filters.h"
#include "compression/messages/suggest.h"
#include "compression/scores/score.h"

namespace nni_compression::compression {
namespace {

Channels Filters(const Layer& layer) { return Channels::Of(layer.shape, layer.channel_axis); }

class Fpgm : public FilterScore {
 public:
  absl::StatusOr<std::vector<double>> Of(const Layer& layer, const Weight& weight,
                                         const Statistics&) const override {
    return FilterDistanceSums(layer.dtype, weight.values.data_ptr(), Filters(layer));
  }
  int64_t work_bytes(const Layer& layer) const override {
    return FilterDistanceBytes(Filters(layer));
  }
};

}  // namespace

ScoreInfo FpgmScore() {
  ScoreInfo info;
  info.name = "fpgm";
  info.formula = "sum over the other filters of the layer of the Euclidean distance to them";
  info.can_normalize = true;
  info.check_layer = [](const Layer& layer) {
    const int64_t filters = layer.filters();
    if (filters <= kMaxFilterDistances) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", Quoted(layer.name), " has ", filters,
                     " filters; score fpgm, whose time grows "
                     "with the square of their number, takes at most ",
                     kMaxFilterDistances));
  };
  info.create_for_filters = [](const Options&) { return std::make_unique<const Fpgm>(); };
  return info;
}

}  // namespace nni_compression::compression
