// Linear: i + (f - i) p.
#include "compression/schedules/ramp.h"

namespace nni_compression::compression {

ScheduleInfo LinearSchedule() {
  return RampSchedule("linear", "i + (f - i) p", [](const Ramp& ramp, double p) {
    return ramp.initial + (ramp.final - ramp.initial) * p;
  });
}

}  // namespace nni_compression::compression
