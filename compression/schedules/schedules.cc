#include <vector>

#include "compression/schedules/schedule.h"

namespace nni_compression::compression {

// One line for each schedule of schedules/: the function that describes it.
#define NNI_COMPRESSION_SCHEDULES(SCHEDULE) \
  SCHEDULE(Agp)                             \
  SCHEDULE(Exponential)                     \
  SCHEDULE(Iterative)                       \
  SCHEDULE(Linear)                          \
  SCHEDULE(Once)

#define NNI_COMPRESSION_DECLARE(name) ScheduleInfo name##Schedule();
NNI_COMPRESSION_SCHEDULES(NNI_COMPRESSION_DECLARE)
#undef NNI_COMPRESSION_DECLARE

const std::vector<ScheduleInfo>& AllSchedules() {
#define NNI_COMPRESSION_DESCRIBE(name) name##Schedule(),
  static const auto* const schedules =
      new std::vector<ScheduleInfo>{NNI_COMPRESSION_SCHEDULES(NNI_COMPRESSION_DESCRIBE)};
#undef NNI_COMPRESSION_DESCRIBE
  return *schedules;
}

const ScheduleInfo* FindSchedule(absl::string_view name) {
  for (const ScheduleInfo& info : AllSchedules()) {
    if (info.name == name) return &info;
  }
  return nullptr;
}

}  // namespace nni_compression::compression
