#include "compression/schedules/ramp.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {
namespace {

class Rising : public Schedule {
 public:
  Rising(const Ramp& ramp, double (*curve)(const Ramp&, double)) : ramp_(ramp), curve_(curve) {}

  double Target(int64_t now) const override {
    if (now < ramp_.start) return 0;
    if (now >= ramp_.end) return ramp_.final;
    const double p = static_cast<double>(ramp_.LastUpdate(now) - ramp_.start) /
                     static_cast<double>(ramp_.end - ramp_.start);
    return std::clamp(curve_(ramp_, p), ramp_.initial, ramp_.final);
  }

  double Final() const override { return ramp_.final; }

 private:
  const Ramp ramp_;
  double (*const curve_)(const Ramp&, double);
};

}  // namespace

std::vector<OptionSpec> Ramp::Specs() {
  std::vector<OptionSpec> specs = {
      SparsityOption("initial_sparsity", 0.0, "Share of weights removed at the start."),
      SparsityOption("final_sparsity", nullptr, "Share of weights removed from the end on.")};
  for (OptionSpec& spec : StartAndEndOptions()) specs.push_back(std::move(spec));
  return specs;
}

absl::StatusOr<Ramp> Ramp::Read(const Options& options) {
  const std::string start = TimeOption(options, "start");
  const std::string end = TimeOption(options, "end");
  Ramp ramp;
  ramp.initial = options.Number("initial_sparsity");
  ramp.final = options.Number("final_sparsity");
  ramp.start = options.Integer(start);
  ramp.end = options.Integer(end);
  ramp.frequency = options.Integer("frequency");
  if (ramp.initial > ramp.final) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.path(), ".initial_sparsity is ", Shown(ramp.initial),
                     "; it must be in [0, final_sparsity], which is ", Shown(ramp.final)));
  }
  if (ramp.end <= ramp.start) {
    return absl::InvalidArgumentError(absl::StrCat(options.path(), ".", end, " is ", ramp.end,
                                                   "; it must be above ", start, ", which is ",
                                                   ramp.start));
  }
  if (ramp.frequency > ramp.end - ramp.start) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.path(), ".frequency is ", ramp.frequency, "; it must be in [1, ",
                     ramp.end - ramp.start, "], as from ", start, " to ", end,
                     ", so that no renewal of the mask would be skipped"));
  }
  return ramp;
}

ScheduleInfo RampSchedule(std::string name, std::string formula,
                          double (*curve)(const Ramp&, double)) {
  ScheduleInfo info;
  info.name = std::move(name);
  info.formula = std::move(formula);
  info.options = Ramp::Specs();
  info.create = [curve](const Options& options) -> absl::StatusOr<std::unique_ptr<const Schedule>> {
    const absl::StatusOr<Ramp> ramp = Ramp::Read(options);
    if (!ramp.ok()) return ramp.status();
    return std::make_unique<const Rising>(*ramp, curve);
  };
  return info;
}

}  // namespace nni_compression::compression
