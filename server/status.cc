#include "server/status.h"

#include <exception>
#include <new>
#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "compression/exception_text.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "server/call_trace.h"
#include "server/convert.h"
#include "server/log.h"

namespace nni_compression::server {
namespace {

constexpr char kRetryAfter[] = "nni.compression/retry-after-ms";
constexpr char kPushbackTrailer[] = "grpc-retry-pushback-ms";

// Clients refuse more than 8 KiB of metadata, and a byte may take three there.
constexpr size_t kMaxMessageBytes = 2000;
constexpr size_t kMaxDetailedBytes = 1000;  // of a message that is there twice

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

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  if (const auto wait = RetryAfter(status)) {
    google::rpc::RetryInfo retry;
    ToProto(*wait, retry.mutable_retry_delay());
    google::rpc::Status details;
    details.set_code(static_cast<int>(status.code()));
    details.set_message(Printable(status.message(), kMaxDetailedBytes));
    details.add_details()->PackFrom(retry);
    return grpc::Status(static_cast<grpc::StatusCode>(status.code()), details.message(),
                        details.SerializeAsString());
  }
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()),
                      Printable(status.message(), kMaxMessageBytes));
}

grpc::Status FinishWith(const absl::Status& status, grpc::ServerContextBase* context) {
  if (const auto wait = RetryAfter(status)) {
    context->AddTrailingMetadata(kPushbackTrailer, absl::StrCat(absl::ToInt64Milliseconds(*wait)));
  }
  if (!status.ok()) {
    const std::string request_id = ReadCallTrace(*context).request_id;
    if (!request_id.empty()) context->AddTrailingMetadata(kRequestIdKey, request_id);
  }
  return ToGrpc(status);
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
