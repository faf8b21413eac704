// Magnitude: |w|.
#include <memory>

#include "compression/scores/score.h"

namespace nni_compression::compression {
namespace {

class Magnitude : public Score {
 public:
  absl::StatusOr<Scores> Of(const Layer& layer, const Weight& weight,
                            const Statistics&) const override {
    return Scores{layer.dtype, weight.values.data_ptr()};
  }
  int64_t bytes_per_element() const override { return 0; }
};

}  // namespace

ScoreInfo MagnitudeScore() {
  ScoreInfo info;
  info.name = "magnitude";
  info.formula = "|w|";
  info.can_normalize = true;
  info.create = [](const Options&) { return std::make_unique<const Magnitude>(); };
  return info;
}

}  // namespace nni_compression::compression
