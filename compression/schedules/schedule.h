// When a pruner removes how much. A new schedule is a file in this folder and a line in
// schedules.cc.
#ifndef NNI_COMPRESSION_COMPRESSION_SCHEDULES_SCHEDULE_H_
#define NNI_COMPRESSION_COMPRESSION_SCHEDULES_SCHEDULE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "compression/options/options.h"

namespace nni_compression::compression {

// The target sparsity as a function of time: the trainer's epoch, or its step with `schedule_unit`
// step. Targets are in [0, 1]. Immutable, hence thread-safe.
class Schedule {
 public:
  virtual ~Schedule() = default;

  // The target in force.
  virtual double Target(int64_t now) const = 0;

  // The target of masks that are made now; nullopt: none is made now.
  virtual std::optional<double> Due(int64_t now) const { return Target(now); }

  // The largest target.
  virtual double Final() const = 0;

  // Whether time changes the target.
  virtual bool changes() const { return true; }
};

// A schedule's entry in the table.
struct ScheduleInfo {
  std::string name;
  std::string formula;  // for people
  std::vector<OptionSpec> options;

  // INVALID_ARGUMENT for options that contradict each other; messages begin with options.path().
  std::function<absl::StatusOr<std::unique_ptr<const Schedule>>(const Options& options)> create;
};

// All schedules, by name.
const std::vector<ScheduleInfo>& AllSchedules();

// The schedule of that name; null: there is none.
const ScheduleInfo* FindSchedule(absl::string_view name);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_SCHEDULES_SCHEDULE_H_
