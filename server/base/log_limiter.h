// Rate limits for log lines that callers cause.
#ifndef NNI_COMPRESSION_SERVER_BASE_LOG_LIMITER_H_
#define NNI_COMPRESSION_SERVER_BASE_LOG_LIMITER_H_

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "server/base/mutex.h"

namespace nni_compression::server {

// Token buckets: per event, a burst of 100 lines about one subject (a tenant, an address) and one
// line a second after that; ten times as many over all subjects. So an event writes at most a few
// hundred MB a day, whatever callers do, and one subject does not hide events about others. Tracks
// at most 1,000 subjects; further ones share a bucket. Thread-safe.
class LogLimiter {
 public:
  static constexpr double kBurst = 100;
  static constexpr double kLinesPerSecond = 1;
  static constexpr double kAllSubjects = 10;  // times the limit of one subject
  static constexpr size_t kMaxSubjects = 1000;

  using Time = std::chrono::steady_clock::time_point;

  // Whether the line may be written now; a suppressed line is counted.
  bool Admit(absl::string_view event, absl::string_view subject, Time now);

  struct Suppressed {
    std::string event;
    std::string subject;
    int64_t lines = 0;
  };
  // What was suppressed since the last call. Forgets subjects without recent events.
  std::vector<Suppressed> TakeSuppressed(Time now);

 private:
  struct Bucket {
    double used = 0;  // lines
    Time since = {};
    int64_t suppressed = 0;

    void Drain(double lines_per_second, Time now);
  };

  Mutex mutex_;
  std::map<std::pair<std::string, std::string>, Bucket> subjects_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Bucket, std::less<>> events_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_BASE_LOG_LIMITER_H_
