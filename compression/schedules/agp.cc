// Automated gradual pruning: To prune, or not to prune (Zhu & Gupta 2017).
//
//   f + (i - f) (1 - p)^3, clamped into [i, f]
//
// By steps, p is that of every ramp. By epochs, as in NNI, updates happen at the epochs start,
// start + frequency, ... only, and p is the share of the span between the first and the last of
// them before the end:
//
//   span = ((end - start - 1) / frequency) * frequency                  integer division
#include <algorithm>
#include <cmath>
#include <memory>

#include "absl/strings/str_cat.h"
#include "compression/schedules/ramp.h"

namespace nni_compression::compression {
namespace {

double Cubic(const Ramp& ramp, double p) {
  return ramp.final + (ramp.initial - ramp.final) * std::pow(1.0 - p, 3.0);
}

int64_t Span(const Ramp& ramp) {
  return (ramp.end - ramp.start - 1) / ramp.frequency * ramp.frequency;
}

class AgpByEpoch : public Schedule {
 public:
  explicit AgpByEpoch(const Ramp& ramp) : ramp_(ramp) {}

  double Target(int64_t now) const override {
    if (now < ramp_.start) return 0;
    const int64_t update = ramp_.LastUpdate(now);
    if (update >= ramp_.end) return ramp_.final;
    const double p = static_cast<double>(update - ramp_.start) / static_cast<double>(Span(ramp_));
    return std::clamp(Cubic(ramp_, p), ramp_.initial, ramp_.final);
  }

  std::optional<double> Due(int64_t now) const override {
    const bool due = now >= ramp_.start && (now - ramp_.start) % ramp_.frequency == 0;
    return due ? std::make_optional(Target(now)) : std::nullopt;
  }

  double Final() const override { return ramp_.final; }

 private:
  const Ramp ramp_;
};

}  // namespace

ScheduleInfo AgpSchedule() {
  ScheduleInfo info = RampSchedule("agp", "f + (i - f) (1 - p)^3", Cubic);
  info.create = [by_step = info.create](
                    const Options& options) -> absl::StatusOr<std::unique_ptr<const Schedule>> {
    if (CountsSteps(options)) return by_step(options);
    const absl::StatusOr<Ramp> ramp = Ramp::Read(options);
    if (!ramp.ok()) return ramp.status();
    if (Span(*ramp) <= 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          options.path(), ".end_epoch is ", ramp->end,
          "; it must be above start_epoch + frequency, which is ", ramp->start + ramp->frequency,
          ", so that an epoch is between the first mask and the last"));
    }
    return std::make_unique<const AgpByEpoch>(*ramp);
  };
  return info;
}

}  // namespace nni_compression::compression
