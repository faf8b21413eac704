// Naive quantizer: 8 bits, symmetric, one scale per layer that only grows.
//
//   scale = max(scale so far in this session, max|w| / 127)
//   code  = clamp(trunc(w / scale), -127, 127)
//   value = code * scale
//
// A layer that was all zeros so far has codes 0; its scale is answered as 1, so that a trainer that
// quantizes locally does not divide by zero.
#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "compression/algorithms/range_quantizer.h"

namespace nni_compression::compression {
namespace {

constexpr int kBits = 8;
constexpr int32_t kCodeMax = 127;
constexpr char kScale[] = "scale";  // where LayerState::memory has the largest scale so far

class NaiveQuantizer : public RangeQuantizer {
 public:
  NaiveQuantizer() : RangeQuantizer(kBits) {
    traits_.remembered = {{kScale, Remembered::Kind::kScale}};
  }

 protected:
  std::optional<QuantizationParameters> ParametersFor(const Layer&, const Range& range, Clock,
                                                      LayerState& state) const override {
    std::vector<float>& so_far = state.memory[kScale];
    so_far.resize(1);
    so_far[0] = std::max(so_far[0], MaxMagnitude(range, 0) / static_cast<float>(kCodeMax));

    QuantizationParameters parameters;
    parameters.rounding = Rounding::kTruncate;
    parameters.bits = kBits;
    parameters.code_min = -kCodeMax;
    parameters.code_max = kCodeMax;
    parameters.scale = {so_far[0] > 0 ? so_far[0] : 1.0f};
    parameters.zero_point = {0};
    return parameters;
  }
};

}  // namespace

AlgorithmInfo NaiveAlgorithm() {
  AlgorithmInfo info;
  info.name = "naive";
  info.kind = AlgorithmKind::kQuantizer;
  info.summary = "Rounds weights to 8 bits towards zero, with one scale per layer.";
  info.options = {QuantBits(kBits, kBits), QuantTypes()};
  info.example = nlohmann::json::object();
  info.create = [](const Options& options) -> absl::StatusOr<std::unique_ptr<Compressor>> {
    if (auto bits = BitsFor(options, "weight"); !bits.ok()) return bits.status();
    return std::make_unique<NaiveQuantizer>();
  };
  return info;
}

}  // namespace nni_compression::compression
