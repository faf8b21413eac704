// Iterative: the rounds of The Lottery Ticket Hypothesis (Frankle & Carbin 2019). Each lasts
// `frequency` epochs or steps; round i begins with the mask that keeps (1 - s)^(i / rounds), and
// round 0 is dense.
#include <algorithm>
#include <cmath>
#include <memory>

#include "compression/schedules/schedule.h"
#include "compression/schedules/time.h"

namespace nni_compression::compression {
namespace {

constexpr int kMaxRounds = 1000;

class Iterative : public Schedule {
 public:
  Iterative(double sparsity, int64_t rounds, int64_t start, int64_t frequency)
      : sparsity_(sparsity), rounds_(rounds), start_(start), frequency_(frequency) {}

  double Target(int64_t now) const override {
    if (now < start_) return 0;
    const int64_t round = (now - start_) / frequency_;
    if (round >= rounds_) return sparsity_;
    return 1 - std::pow(1 - sparsity_, static_cast<double>(round) / static_cast<double>(rounds_));
  }

  double Final() const override { return sparsity_; }

 private:
  const double sparsity_;
  const int64_t rounds_;
  const int64_t start_;
  const int64_t frequency_;
};

}  // namespace

ScheduleInfo IterativeSchedule() {
  ScheduleInfo info;
  info.name = "iterative";
  info.formula = "1 - (1 - s)^(i / rounds)";
  OptionSpec rounds;
  rounds.name = "rounds";
  rounds.type = OptionType::kInteger;
  rounds.minimum = 1;
  rounds.maximum = kMaxRounds;
  rounds.description = "Rounds of pruning, each `frequency` long; a dense one comes first.";
  info.options = {SparsityOption("sparsity", nullptr, "Share of weights to remove."), rounds};
  for (OptionSpec& spec : StartOptions()) info.options.push_back(std::move(spec));
  info.create = [](const Options& options) {
    return std::make_unique<const Iterative>(options.Number("sparsity"), options.Integer("rounds"),
                                             options.Integer(TimeOption(options, "start")),
                                             options.Integer("frequency"));
  };
  return info;
}

}  // namespace nni_compression::compression
