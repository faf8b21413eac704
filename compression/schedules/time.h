// The options by which schedules that change place themselves in time.
#ifndef NNI_COMPRESSION_COMPRESSION_SCHEDULES_TIME_H_
#define NNI_COMPRESSION_COMPRESSION_SCHEDULES_TIME_H_

#include <cstdint>
#include <string>
#include <vector>

#include "compression/options/options.h"

namespace nni_compression::compression {

// An option that is a share of weights, in [0, 1]; null as the default: it is required.
OptionSpec SparsityOption(std::string name, nlohmann::json default_value, std::string description);

// `schedule_unit`, `start_epoch` or `start_step`, and `frequency`.
std::vector<OptionSpec> StartOptions();
// The same, and `end_epoch` or `end_step`.
std::vector<OptionSpec> StartAndEndOptions();

// Whether time is counted in steps; otherwise in epochs.
bool CountsSteps(const Options& options);

// "start_epoch" or "start_step", for `what` "start".
std::string TimeOption(const Options& options, absl::string_view what);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_SCHEDULES_TIME_H_
