// Threshold pruner: removes every weight whose magnitude is below a threshold, once. How many go
// follows from the weight.
#include <ATen/core/Tensor.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/ge.h>

#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "compression/algorithm.h"
#include "compression/kernels/finite.h"
#include "compression/plugin.h"

namespace {

using namespace nni_compression::compression;  // NOLINT: a plugin has nothing else

class ThresholdPruner : public Pruner {
 public:
  explicit ThresholdPruner(double threshold) : threshold_(threshold) {}

  absl::StatusOr<Mask> CalcMask(const Layer& layer, const Weight& weight, LayerState&,
                                Clock) const override {
    const int64_t n = layer.elements;
    if (!AllFinite(layer.dtype, weight.values.data_ptr(), n)) {
      return NonFiniteError(layer, weight.values.data_ptr());
    }
    const at::Tensor kept = at::ge(at::abs(weight.values), threshold_);
    const bool* const keep = kept.data_ptr<bool>();
    Buffer bits = Buffer::Allocate(ByteLength(DataType::kBit, n));
    std::memset(bits.data(), 0, static_cast<size_t>(bits.size()));
    for (int64_t i = 0; i < n; ++i) bits.data()[i >> 3] |= static_cast<uint8_t>(keep[i] << (i & 7));
    return Mask::FromBits(std::move(bits), n);
  }

 private:
  const double threshold_;
};

AlgorithmInfo ThresholdAlgorithm() {
  AlgorithmInfo info;
  info.name = "threshold";
  info.kind = AlgorithmKind::kPruner;
  info.summary = "Removes the weights whose magnitude is below a threshold, once.";
  OptionSpec threshold;
  threshold.name = "threshold";
  threshold.description = "Magnitude from which on a weight is kept.";
  info.options = {threshold};
  info.example = {{"threshold", 0.1}};
  info.create = [](const Options& options) -> absl::StatusOr<std::unique_ptr<Compressor>> {
    return std::make_unique<ThresholdPruner>(options.Number("threshold"));
  };
  return info;
}

}  // namespace

NNI_COMPRESSION_PLUGIN() { return {ThresholdAlgorithm()}; }
