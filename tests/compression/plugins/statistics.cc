// A plugin whose algorithm asks for any statistics.
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compression/plugin.h"

namespace nni_compression::compression {
namespace {

// Removes weight i where number i of the first statistic (counted from the start again at its end)
// is below the threshold; all other statistics have to be there.
class NeedsStatistics : public Pruner {
 public:
  NeedsStatistics(std::vector<StatisticKind> kinds, double threshold) : threshold_(threshold) {
    traits_.statistics = std::move(kinds);
  }

  absl::StatusOr<Mask> CalcMask(const Layer& layer, const Weight&, LayerState& state,
                                Clock) const override {
    for (const StatisticKind kind : traits().statistics) {
      if (state.statistics.count(kind) > 0) continue;
      return absl::FailedPreconditionError(absl::StrCat(
          "layer '", layer.name, "' has no ", FindStatistic(static_cast<int>(kind))->name, " yet"));
    }
    const StatisticKind first = traits().statistics.front();
    const StatisticTotal total =
        Merge(*FindStatistic(static_cast<int>(first)), *state.statistics.at(first));
    // The session takes no statistics from an algorithm.
    state.statistics.clear();
    Buffer bits = Buffer::Allocate(ByteLength(DataType::kBit, layer.elements));
    std::memset(bits.data(), 0, static_cast<size_t>(bits.size()));
    for (int64_t i = 0; i < layer.elements; ++i) {
      const double number = total.values[static_cast<size_t>(i) % total.values.size()];
      if (number >= threshold_) bits.data()[i >> 3] |= static_cast<uint8_t>(1 << (i & 7));
    }
    return Mask::FromBits(std::move(bits), layer.elements);
  }

 private:
  const double threshold_;
};

AlgorithmInfo NeedsStatisticsAlgorithm() {
  AlgorithmInfo info;
  info.name = "needs_statistics";
  info.kind = AlgorithmKind::kPruner;
  info.summary = "Removes the weights whose statistic is below a threshold, once.";
  OptionSpec kinds;
  kinds.name = "kinds";
  kinds.type = OptionType::kStringList;
  OptionSpec threshold;
  threshold.name = "threshold";
  threshold.minimum = -kUnbounded;
  threshold.default_value = 0.5;
  info.options = {kinds, threshold};
  info.example = {{"kinds", {"weight_gradient"}}};
  info.create = [](const Options& options) -> absl::StatusOr<std::unique_ptr<Compressor>> {
    std::vector<StatisticKind> found;
    for (const std::string& name : options.json().at("kinds").get<std::vector<std::string>>()) {
      const StatisticInfo* const known = FindStatistic(name);
      if (known == nullptr) {
        return absl::InvalidArgumentError(absl::StrCat(options.path(), ".kinds has ", name));
      }
      found.push_back(known->kind);
    }
    if (found.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(options.path(), ".kinds is empty"));
    }
    return std::make_unique<NeedsStatistics>(std::move(found), options.Number("threshold"));
  };
  return info;
}

}  // namespace
}  // namespace nni_compression::compression

NNI_COMPRESSION_PLUGIN() { return {nni_compression::compression::NeedsStatisticsAlgorithm()}; }
