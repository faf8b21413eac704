// Exponential: 1 - (1 - i) ((1 - f) / (1 - i))^p, so that each update keeps the same share of what
// the last one kept.
#include <cmath>

#include "compression/schedules/ramp.h"

namespace nni_compression::compression {

ScheduleInfo ExponentialSchedule() {
  return RampSchedule("exponential", "1 - (1 - i) ((1 - f) / (1 - i))^p",
                      [](const Ramp& ramp, double p) {
                        const double kept = 1 - ramp.initial;
                        if (kept == 0) return 1.0;
                        return 1 - kept * std::pow((1 - ramp.final) / kept, p);
                      });
}

}  // namespace nni_compression::compression
