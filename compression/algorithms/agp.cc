// Automated gradual pruner: To prune, or not to prune (Zhu & Gupta 2017).
//
//   span = ((end - start - 1) / frequency) * frequency                  integer division
//   target(e) = final + (initial - final) * (1 - (e - start) / span)^3  start <= e < end
//   target(e) = final                                                   e >= end
//
// clamped into [initial, final]. The mask is updated at the epochs start, start + frequency, ...:
// the trunc(n * target) smallest weights are pruned, those of the last mask first.
#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "compression/algorithms/magnitude_pruner.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {
namespace {

struct Schedule {
  double initial_sparsity = 0;
  double final_sparsity = 0;
  int64_t start_epoch = 0;
  int64_t end_epoch = 0;
  int64_t frequency = 1;

  int64_t span() const { return (end_epoch - start_epoch - 1) / frequency * frequency; }

  // epoch >= start_epoch.
  double Target(int64_t epoch) const {
    if (epoch >= end_epoch) return final_sparsity;
    const double done = static_cast<double>(epoch - start_epoch) / static_cast<double>(span());
    const double target =
        final_sparsity + (initial_sparsity - final_sparsity) * std::pow(1.0 - done, 3.0);
    return std::clamp(target, initial_sparsity, final_sparsity);
  }
};

class AgpPruner : public MagnitudePruner {
 public:
  explicit AgpPruner(const Schedule& schedule) : schedule_(schedule) {}

  Refresh refresh() const override { return Refresh::kWhenStale; }
  bool needs_epoch() const override { return true; }

  // The epoch of the last update at or before `epoch`.
  std::optional<double> TargetSparsity(Clock clock) const override {
    if (clock.epoch < schedule_.start_epoch) return 0;
    return schedule_.Target(clock.epoch -
                            (clock.epoch - schedule_.start_epoch) % schedule_.frequency);
  }

 protected:
  std::optional<double> SparsityNow(Clock clock) const override {
    const bool due = clock.epoch >= schedule_.start_epoch &&
                     (clock.epoch - schedule_.start_epoch) % schedule_.frequency == 0;
    return due ? std::make_optional(schedule_.Target(clock.epoch)) : std::nullopt;
  }

 private:
  const Schedule schedule_;
};

absl::StatusOr<std::unique_ptr<Compressor>> Create(const Options& options) {
  Schedule schedule;
  schedule.initial_sparsity = options.Number("initial_sparsity");
  schedule.final_sparsity = options.Number("final_sparsity");
  schedule.start_epoch = options.Integer("start_epoch");
  schedule.end_epoch = options.Integer("end_epoch");
  schedule.frequency = options.Integer("frequency");
  if (schedule.initial_sparsity > schedule.final_sparsity) {
    return absl::InvalidArgumentError(absl::StrCat(
        options.path(), ".initial_sparsity is ", Shown(schedule.initial_sparsity),
        "; it must be in [0, final_sparsity], which is ", Shown(schedule.final_sparsity)));
  }
  if (schedule.end_epoch <= schedule.start_epoch) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.path(), ".end_epoch is ", schedule.end_epoch,
                     "; it must be above start_epoch, which is ", schedule.start_epoch));
  }
  if (schedule.span() <= 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        options.path(), ".frequency is ", schedule.frequency,
        "; it must be below end_epoch - start_epoch, which is ",
        schedule.end_epoch - schedule.start_epoch, ", so that there is a step between them"));
  }
  return std::make_unique<AgpPruner>(schedule);
}

OptionSpec Sparsity(const char* name, nlohmann::json default_value, const char* description) {
  OptionSpec spec;
  spec.name = name;
  spec.default_value = std::move(default_value);
  spec.maximum = 1;
  spec.description = description;
  return spec;
}

OptionSpec Epochs(const char* name, nlohmann::json default_value, double minimum,
                  const char* description) {
  OptionSpec spec;
  spec.name = name;
  spec.type = OptionType::kInteger;
  spec.default_value = std::move(default_value);
  spec.minimum = minimum;
  spec.description = description;
  return spec;
}

}  // namespace

AlgorithmInfo AgpAlgorithm() {
  AlgorithmInfo info;
  info.name = "agp";
  info.kind = AlgorithmKind::kPruner;
  info.summary = "Removes each layer's smallest weights gradually, quickly first and slowly last.";
  info.reference = "Zhu & Gupta, To prune, or not to prune, 2017, https://arxiv.org/abs/1710.01878";
  info.options = {
      Sparsity("initial_sparsity", 0.0, "Share of weights removed at start_epoch."),
      Sparsity("final_sparsity", nullptr, "Share of weights removed from end_epoch on."),
      Epochs("start_epoch", 0, 0, "First epoch that prunes."),
      Epochs("end_epoch", nullptr, 0, "Epoch from which final_sparsity holds."),
      Epochs("frequency", 1, 1, "Epochs between renewals of the mask."),
  };
  info.example = {{"initial_sparsity", 0.0},
                  {"final_sparsity", 0.8},
                  {"start_epoch", 0},
                  {"end_epoch", 10},
                  {"frequency", 1}};
  info.create = Create;
  return info;
}

}  // namespace nni_compression::compression
