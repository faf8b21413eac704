// The errors of the server, and what becomes of exceptions.
#ifndef NNI_COMPRESSION_SERVER_BASE_ERRORS_H_
#define NNI_COMPRESSION_SERVER_BASE_ERRORS_H_

#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace nni_compression::server {

// When to ask again for what others hold.
constexpr absl::Duration kRetryWait = absl::Seconds(1);

// RESOURCE_EXHAUSTED that is over in about `wait`; clients get the time in the trailer
// `grpc-retry-pushback-ms` and as a google.rpc.RetryInfo. A plain absl::ResourceExhaustedError
// means that waiting does not help.
absl::Status ExhaustedFor(absl::Duration wait, absl::string_view message);
std::optional<absl::Duration> RetryAfter(const absl::Status& status);

// A tenant's quota, `sessions` say, is used up: `used` and `more` are above `limit`. `wait` is
// about how long that will last; nothing: for good.
absl::Status QuotaExhausted(absl::string_view quota, int64_t used, int64_t more, int64_t limit,
                            std::optional<absl::Duration> wait);

// Calls `function`, which returns a Status or a StatusOr, and turns what LibTorch and the standard
// library throw into a status: RESOURCE_EXHAUSTED for memory, INTERNAL for the rest.
template <typename Function>
auto CatchExceptions(Function&& function) -> decltype(function());

// Of the exception that is being handled.
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
