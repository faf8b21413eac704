#include "server/base/log_limiter.h"

#include <algorithm>

namespace nni_compression::server {

void LogLimiter::Bucket::Drain(double lines_per_second, Time now) {
  const std::chrono::duration<double> passed = now - since;
  used = std::max(0.0, used - passed.count() * lines_per_second);
  since = now;
}

bool LogLimiter::Admit(absl::string_view event, absl::string_view subject, Time now) {
  MutexLock lock(&mutex_);
  std::pair<std::string, std::string> key(event, subject);
  if (subjects_.size() >= kMaxSubjects && subjects_.count(key) == 0) key.second = "others";
  Bucket& one = subjects_[key];
  Bucket& all = events_[key.first];
  one.Drain(kLinesPerSecond, now);
  all.Drain(kLinesPerSecond * kAllSubjects, now);
  if (one.used + 1 > kBurst || all.used + 1 > kBurst * kAllSubjects) {
    ++one.suppressed;
    return false;
  }
  ++one.used;
  ++all.used;
  return true;
}

std::vector<LogLimiter::Suppressed> LogLimiter::TakeSuppressed(Time now) {
  MutexLock lock(&mutex_);
  std::vector<Suppressed> suppressed;
  for (auto it = subjects_.begin(); it != subjects_.end();) {
    Bucket& bucket = it->second;
    if (bucket.suppressed > 0) {
      suppressed.push_back({it->first.first, it->first.second, bucket.suppressed});
      bucket.suppressed = 0;
    }
    bucket.Drain(kLinesPerSecond, now);
    it = bucket.used == 0 ? subjects_.erase(it) : std::next(it);
  }
  return suppressed;
}

}  // namespace nni_compression::server
