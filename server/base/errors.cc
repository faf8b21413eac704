#include "server/base/errors.h"

#include <exception>
#include <new>
#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "compression/messages/exception_text.h"

namespace nni_compression::server {
namespace {

constexpr char kRetryAfter[] = "nni.compression/retry-after-ms";

}  // namespace

absl::Status ExhaustedFor(absl::Duration wait, absl::string_view message) {
  absl::Status status = absl::ResourceExhaustedError(message);
  status.SetPayload(kRetryAfter, absl::Cord(absl::StrCat(absl::ToInt64Milliseconds(wait))));
  return status;
}

std::optional<absl::Duration> RetryAfter(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kRetryAfter);
  int64_t milliseconds = 0;
  if (!payload || !absl::SimpleAtoi(std::string(*payload), &milliseconds)) return std::nullopt;
  return absl::Milliseconds(milliseconds);
}

absl::Status QuotaExhausted(absl::string_view quota, int64_t used, int64_t more, int64_t limit,
                            std::optional<absl::Duration> wait) {
  const std::string message =
      absl::StrCat("the tenant's quota of ", quota, " is ", limit, ", of which ", used,
                   " are in use; the call needs ", more, " more");
  return wait ? ExhaustedFor(*wait, message) : absl::ResourceExhaustedError(message);
}

absl::Status CurrentExceptionStatus() {
  try {
    throw;
  } catch (const std::bad_alloc&) {
    return ExhaustedFor(absl::Seconds(1), "the server is out of memory");
  } catch (const std::exception& e) {  // c10::Error, too
    return absl::InternalError(compression::TextOf(e));
  } catch (...) {
    return absl::InternalError("unknown exception");
  }
}

}  // namespace nni_compression::server
