// Retryable errors, and the conversion of exceptions to statuses.
#ifndef NNI_COMPRESSION_SERVER_BASE_ERRORS_H_
#define NNI_COMPRESSION_SERVER_BASE_ERRORS_H_

#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace nni_compression::server {

// When to retry for a resource that other calls hold.
constexpr absl::Duration kRetryWait = absl::Seconds(1);

// A retryable RESOURCE_EXHAUSTED: a retry after about `wait` may succeed. Clients get the time in
// the trailer `grpc-retry-pushback-ms` and as a google.rpc.RetryInfo. A plain
// absl::ResourceExhaustedError is not retryable.
absl::Status ExhaustedFor(absl::Duration wait, absl::string_view message);
std::optional<absl::Duration> RetryAfter(const absl::Status& status);

// A tenant's quota, for example `sessions`, is exhausted: `used` + `more` exceeds `limit`. `wait`
// estimates for how long; nullopt: not retryable.
absl::Status QuotaExhausted(absl::string_view quota, int64_t used, int64_t more, int64_t limit,
                            std::optional<absl::Duration> wait);

// Calls `function`, which returns a Status or a StatusOr, and turns what LibTorch and the standard
// library throw into a status: RESOURCE_EXHAUSTED for out of memory, INTERNAL for the rest.
template <typename Function>
auto CatchExceptions(Function&& function) -> decltype(function());

// The status for the exception that is being handled.
absl::Status CurrentExceptionStatus();

template <typename Function>
auto CatchExceptions(Function&& function) -> decltype(function()) {
  try {
    return function();
  } catch (...) {
    return CurrentExceptionStatus();
  }
}

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_BASE_ERRORS_H_
