// Movement (Sanh, Wolf & Rush 2020): what moves away from zero in training is kept.
//
//   S = -sum over steps of lr * w * dL/dw, rounded to float32; the lowest are pruned first
//
// lr * dL/dw is a step of gradient descent, and S grows when it moves w away from zero.
#include <cstring>
#include <memory>
#include <utility>

#include "compression/kernels/parallel.h"
#include "compression/scores/score.h"

namespace nni_compression::compression {
namespace {

// The place of a number among all float32: an integer in [0, 2^32), which ascends with it. -0 is 0.
double Order(float value) {
  value += 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  constexpr uint32_t kSign = 0x80000000u;
  return (bits & kSign) != 0 ? ~bits : bits | kSign;
}

class Movement : public Score {
 public:
  absl::StatusOr<Scores> Of(const Layer& layer, const Weight&,
                            const Statistics& statistics) const override {
    const absl::StatusOr<StatisticTotal> total =
        TotalOf(StatisticKind::kWeightGradient, layer, statistics, "score movement");
    if (!total.ok()) return total.status();
    Buffer numbers = Buffer::Allocate(ByteLength(DataType::kFloat64, layer.elements));
    auto* const out = reinterpret_cast<double*>(numbers.data());
    ParallelFor(layer.elements, kGrain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        out[i] = Order(-static_cast<float>(total->values[static_cast<size_t>(i)]));
      }
    });
    return Scores{DataType::kFloat64, out, std::move(numbers)};
  }
  int64_t bytes_per_element() const override { return 2 * sizeof(double); }  // with the total
};

}  // namespace

ScoreInfo MovementScore() {
  ScoreInfo info;
  info.name = "movement";
  info.formula = "-sum of lr * w * dL/dw";
  info.statistics = {StatisticKind::kWeightGradient};
  info.create = [](const Options&) { return std::make_unique<const Movement>(); };
  return info;
}

}  // namespace nni_compression::compression
