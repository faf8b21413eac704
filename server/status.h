// The one place where statuses change type.
#ifndef NNI_COMPRESSION_SERVER_STATUS_H_
#define NNI_COMPRESSION_SERVER_STATUS_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

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

// The same code; control characters of the message are escaped and it is cut to what fits into
// trailing metadata. The details say when to retry, as RetryAfter does.
grpc::Status ToGrpc(const absl::Status& status);

// As ToGrpc, with the trailers of the status added to the call, which is about to finish; an error
// repeats the caller's request id.
grpc::Status FinishWith(const absl::Status& status, grpc::ServerContextBase* context);

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

#endif  // NNI_COMPRESSION_SERVER_STATUS_H_
