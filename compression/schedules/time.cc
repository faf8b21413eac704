#include "compression/schedules/time.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace nni_compression::compression {
namespace {

constexpr char kUnit[] = "schedule_unit";

// An update at each step would request every mask at each step.
constexpr int kStepsBetweenUpdates = 100;

OptionSpec TimeSpec(const std::string& unit, const char* what, nlohmann::json default_value,
                    std::string description) {
  OptionSpec spec;
  spec.name = absl::StrCat(what, "_", unit);
  spec.type = OptionType::kInteger;
  spec.default_value = std::move(default_value);
  spec.description = std::move(description);
  spec.only_with[kUnit] = {unit};
  return spec;
}

OptionSpec UnitSpec() {
  OptionSpec spec;
  spec.name = kUnit;
  spec.type = OptionType::kString;
  spec.choices = {"epoch", "step"};
  spec.default_value = "epoch";
  spec.presets["step"] = {{"frequency", kStepsBetweenUpdates}};
  spec.description = "What the schedule counts.";
  return spec;
}

OptionSpec FrequencySpec() {
  OptionSpec spec;
  spec.name = "frequency";
  spec.type = OptionType::kInteger;
  spec.default_value = 1;
  spec.minimum = 1;
  spec.description = absl::StrCat("Epochs between renewals of the mask; steps with schedule_unit ",
                                  "step, where the default is ", kStepsBetweenUpdates, ".");
  return spec;
}

}  // namespace

OptionSpec SparsityOption(std::string name, nlohmann::json default_value, std::string description) {
  OptionSpec spec;
  spec.name = std::move(name);
  spec.default_value = std::move(default_value);
  spec.maximum = 1;
  spec.description = std::move(description);
  return spec;
}

std::vector<OptionSpec> StartOptions() {
  return {UnitSpec(), TimeSpec("epoch", "start", 0, "First epoch that prunes."),
          TimeSpec("step", "start", 0, "First step that prunes."), FrequencySpec()};
}

std::vector<OptionSpec> StartAndEndOptions() {
  return {UnitSpec(),
          TimeSpec("epoch", "start", 0, "First epoch that prunes."),
          TimeSpec("epoch", "end", nullptr, "Epoch from which final_sparsity holds."),
          TimeSpec("step", "start", 0, "First step that prunes."),
          TimeSpec("step", "end", nullptr, "Step from which final_sparsity holds."),
          FrequencySpec()};
}

bool CountsSteps(const Options& options) {
  return options.Has(kUnit) && options.String(kUnit) == "step";
}

std::string TimeOption(const Options& options, absl::string_view what) {
  return absl::StrCat(what, CountsSteps(options) ? "_step" : "_epoch");
}

}  // namespace nni_compression::compression
