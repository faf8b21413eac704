#include "server/convert/grpc_status.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "server/base/errors.h"
#include "server/base/log.h"
#include "server/convert/call_trace.h"
#include "server/convert/convert.h"

namespace nni_compression::server {
namespace {

constexpr char kPushbackTrailer[] = "grpc-retry-pushback-ms";

// Clients refuse more than 8 KiB of metadata, and a byte may take three there.
constexpr size_t kMaxMessageBytes = 2000;
constexpr size_t kMaxDetailedBytes = 1000;  // the message is sent twice

}  // namespace

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

}  // namespace nni_compression::server
