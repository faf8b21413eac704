#include <cmath>

#include "compression/schedules/schedule.h"
#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

absl::StatusOr<std::unique_ptr<const Schedule>> Make(const std::string& name, const json& rule) {
  const ScheduleInfo& info = *FindSchedule(name);
  const auto options = Options::Parse(info.options, {}, rule, "config_list[0]");
  if (!options.ok()) return options.status();
  return info.create(*options);
}

std::vector<double> Targets(const std::string& name, const json& rule, int64_t last) {
  const auto schedule = Make(name, rule).value();
  std::vector<double> targets;
  for (int64_t t = 0; t <= last; ++t) targets.push_back(schedule->Target(t));
  return targets;
}

const json kEpochs = {{"initial_sparsity", 0.2},
                      {"final_sparsity", 0.9},
                      {"start_epoch", 2},
                      {"end_epoch", 12},
                      {"frequency", 3}};
const json kSteps = {{"initial_sparsity", 0.2}, {"final_sparsity", 0.9}, {"schedule_unit", "step"},
                     {"start_step", 2},         {"end_step", 12},        {"frequency", 3}};

// By the formula: updates at 2, 5, 8, 11 and at the end.
std::vector<double> Expected(double (*curve)(double p)) {
  std::vector<double> targets;
  for (int t = 0; t <= 14; ++t) {
    const double p = static_cast<double>((t - 2) / 3 * 3) / 10;
    targets.push_back(t < 2 ? 0 : t >= 12 ? 0.9 : curve(p));
  }
  return targets;
}

MATCHER_P(AreAbout, expected, "") {
  if (arg.size() != expected.size()) return false;
  for (size_t i = 0; i < arg.size(); ++i) {
    if (std::abs(arg[i] - expected[i]) > 1e-15) return false;
  }
  return true;
}

TEST(SchedulesTest, LinearRisesEvenly) {
  const auto expected = Expected([](double p) { return 0.2 + 0.7 * p; });
  EXPECT_THAT(Targets("linear", kEpochs, 14), AreAbout(expected));
  EXPECT_THAT(Targets("linear", kSteps, 14), AreAbout(expected));
}

TEST(SchedulesTest, ExponentialKeepsTheSameShareEachTime) {
  const auto expected = Expected([](double p) { return 1 - 0.8 * std::pow(0.125, p); });
  EXPECT_THAT(Targets("exponential", kEpochs, 14), AreAbout(expected));
  EXPECT_THAT(Targets("exponential", kSteps, 14), AreAbout(expected));
}

TEST(SchedulesTest, AgpByStepsIsCubic) {
  EXPECT_THAT(Targets("agp", kSteps, 14),
              AreAbout(Expected([](double p) { return 0.9 + (0.2 - 0.9) * std::pow(1 - p, 3); })));
}

// By epochs, p is the share of NNI's span, (12 - 2 - 1) / 3 * 3 = 9, and nothing happens between
// the updates 2, 5, 8, 11, 14.
TEST(SchedulesTest, AgpByEpochsIsNnis) {
  const auto schedule = Make("agp", kEpochs).value();
  for (int64_t t = 0; t < 20; ++t) {
    const bool due = t >= 2 && (t - 2) % 3 == 0;
    EXPECT_EQ(schedule->Due(t).has_value(), due) << t;
    if (!due) continue;
    const double left = 1 - static_cast<double>(t - 2) / 9;
    const double target = t >= 12 ? 0.9 : 0.9 - 0.7 * left * left * left;
    EXPECT_NEAR(*schedule->Due(t), target, 1e-15);
    EXPECT_EQ(schedule->Target(t), *schedule->Due(t));
    EXPECT_EQ(schedule->Target(t + 2), *schedule->Due(t));
  }
}

TEST(SchedulesTest, IterativeKeepsTheSameShareInEachRound) {
  EXPECT_THAT(
      Targets("iterative",
              {{"sparsity", 0.875}, {"rounds", 3}, {"start_epoch", 1}, {"frequency", 2}}, 9),
      AreAbout(std::vector<double>{0, 0, 0, 0.5, 0.5, 0.75, 0.75, 0.875, 0.875, 0.875}));
}

TEST(SchedulesTest, OnceHasOneTarget) {
  const auto schedule = Make("once", {{"sparsity", 0.3}}).value();
  EXPECT_EQ(schedule->Target(0), 0.3);
  EXPECT_EQ(schedule->Target(1000), 0.3);
  EXPECT_FALSE(schedule->changes());
}

TEST(SchedulesTest, TargetsRiseAndEndAtTheFinalOne) {
  for (const ScheduleInfo& info : AllSchedules()) {
    for (const double final : {0.0, 0.5, 1.0}) {
      for (const double initial : {0.0, final}) {
        json rule = json::object();
        for (const OptionSpec& spec : info.options) {
          if (spec.name == "sparsity" || spec.name == "final_sparsity") rule[spec.name] = final;
          if (spec.name == "initial_sparsity") rule[spec.name] = initial;
          if (spec.name == "rounds") rule[spec.name] = 7;
          if (spec.name == "end_epoch") rule[spec.name] = 7;
        }
        const auto schedule = Make(info.name, rule).value();
        EXPECT_EQ(schedule->Final(), final);
        double before = 0;
        for (int64_t t = 0; t < 20; ++t) {
          const double target = schedule->Target(t);
          EXPECT_GE(target, before) << info.name << " at " << t;
          EXPECT_LE(target, final);
          before = target;
        }
        EXPECT_EQ(before, final) << info.name;
      }
    }
  }
}

TEST(SchedulesTest, StepsHaveTheirOwnOptionsAndFrequency) {
  EXPECT_EQ(Make("linear", {{"final_sparsity", 0.5}, {"schedule_unit", "step"}, {"end_step", 1000}})
                .value()
                ->Target(250),
            0.1);  // updates every 100 steps
  EXPECT_THAT(Make("linear", {{"final_sparsity", 0.5}, {"end_step", 10}}),
              IsInvalid("config_list[0].end_step is 10; it may be given only with schedule_unit "
                        "step"));
  EXPECT_THAT(
      Make("linear", {{"final_sparsity", 0.5}, {"schedule_unit", "step"}, {"end_epoch", 10}}),
      IsInvalid(HasSubstr("end_epoch is 10; it may be given only with schedule_unit epoch")));
  EXPECT_THAT(Make("linear", {{"final_sparsity", 0.5}, {"schedule_unit", "step"}}),
              IsInvalid(HasSubstr("config_list[0].end_step is missing")));
}

TEST(SchedulesTest, AFrequencyBeyondTheEndIsRefused) {
  EXPECT_THAT(Make("agp", {{"final_sparsity", 0.5}, {"schedule_unit", "step"}, {"end_step", 60}}),
              IsInvalid(HasSubstr("frequency is 100; it must be in [1, 60], as from start_step to "
                                  "end_step")));
  EXPECT_THAT(Make("linear", {{"final_sparsity", 0.5}, {"end_epoch", 4}, {"frequency", 5}}),
              IsInvalid(HasSubstr("frequency is 5; it must be in [1, 4]")));
  EXPECT_THAT(Make("linear", {{"final_sparsity", 0.5}, {"end_epoch", 4}, {"frequency", 4}}),
              IsOk());
}

TEST(SchedulesTest, RefuseOptionsThatContradictEachOther) {
  for (const char* const name : {"agp", "linear", "exponential"}) {
    json rule = kSteps;
    rule["end_step"] = 2;
    EXPECT_THAT(Make(name, rule),
                IsInvalid("config_list[0].end_step is 2; it must be above start_step, which is 2"));
    rule = kSteps;
    rule["initial_sparsity"] = 0.95;
    EXPECT_THAT(Make(name, rule), IsInvalid(HasSubstr("it must be in [0, final_sparsity]")));
  }
}

}  // namespace
}  // namespace nni_compression::compression
