// Scores of filters by what the layer puts out, after an activation.
//
//   apoz             the share of outputs that are not zero: 1 less the average percentage of zeros
//                    (Hu et al. 2016), so that the filter with the most zeros goes first
//   mean_activation  the mean output (Molchanov et al. 2017)
#include <memory>
#include <utility>

#include "compression/scores/score.h"

namespace nni_compression::compression {
namespace {

class MeanOutput : public FilterScore {
 public:
  MeanOutput(std::string user, StatisticKind kind) : user_(std::move(user)), kind_(kind) {}

  absl::StatusOr<std::vector<double>> Of(const Layer& layer, const Weight&,
                                         const Statistics& statistics) const override {
    absl::StatusOr<StatisticTotal> total = TotalOf(kind_, layer, statistics, user_);
    if (!total.ok()) return total.status();
    const auto count = static_cast<double>(total->count);
    for (double& value : total->values) {
      value /= count;
      if (kind_ == StatisticKind::kOutputZeroCount) value = 1 - value;
    }
    return std::move(total->values);
  }

 private:
  const std::string user_;
  const StatisticKind kind_;
};

ScoreInfo MeanOutputScore(const std::string& name, std::string formula, StatisticKind kind) {
  ScoreInfo info;
  info.name = name;
  info.formula = std::move(formula);
  info.can_normalize = true;
  info.statistics = {kind};
  OptionSpec activation;
  activation.name = "activation";
  activation.type = OptionType::kString;
  activation.default_value = "relu";
  activation.choices = {"relu", "relu6", "none"};
  activation.description = "What is applied to the layer's outputs before they are looked at.";
  info.options = {activation};
  info.activation = [](const Options& options) {
    const std::string& chosen = options.String("activation");
    return chosen == "relu"    ? OutputActivation::kRelu
           : chosen == "relu6" ? OutputActivation::kRelu6
                               : OutputActivation::kNone;
  };
  info.create_for_filters = [name, kind](const Options&) {
    return std::make_unique<const MeanOutput>("score " + name, kind);
  };
  return info;
}

}  // namespace

ScoreInfo ApozScore() {
  return MeanOutputScore("apoz", "1 - the share of zeros among the filter's outputs",
                         StatisticKind::kOutputZeroCount);
}

ScoreInfo MeanActivationScore() {
  return MeanOutputScore("mean_activation", "the mean of the filter's outputs",
                         StatisticKind::kOutputSum);
}

}  // namespace nni_compression::compression
