// What the schedules share that rise from one sparsity to another.
#ifndef NNI_COMPRESSION_COMPRESSION_SCHEDULES_RAMP_H_
#define NNI_COMPRESSION_COMPRESSION_SCHEDULES_RAMP_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "compression/schedules/schedule.h"
#include "compression/schedules/time.h"

namespace nni_compression::compression {

// From `initial` at `start` to `final` from `end` on, in updates every `frequency` epochs or steps;
// 0 before the start.
struct Ramp {
  double initial = 0;
  double final = 0;
  int64_t start = 0;
  int64_t end = 0;
  int64_t frequency = 1;

  // The options that it reads.
  static std::vector<OptionSpec> Specs();
  // INVALID_ARGUMENT unless initial <= final and start < end.
  static absl::StatusOr<Ramp> Read(const Options& options);

  // The time of the last update at or before `now`, which is not before the start.
  int64_t LastUpdate(int64_t now) const { return now - (now - start) % frequency; }
};

// `curve` gives the sparsity at the progress p in [0, 1): the share of the way from start to end
// that the last update saw.
ScheduleInfo RampSchedule(std::string name, std::string formula,
                          double (*curve)(const Ramp& ramp, double p));

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_SCHEDULES_RAMP_H_
