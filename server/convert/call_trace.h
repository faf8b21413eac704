// The caller's identifiers of a call.
#ifndef NNI_COMPRESSION_SERVER_CONVERT_CALL_TRACE_H_
#define NNI_COMPRESSION_SERVER_CONVERT_CALL_TRACE_H_

#include <grpcpp/server_context.h>

#include <string>

#include "absl/strings/string_view.h"

namespace nni_compression::server {

// The metadata key, and the trailer of a failed call, with the caller's request id.
inline constexpr char kRequestIdKey[] = "nni-request-id";

// For correlating the logs of a caller and the server. Each is empty if the caller sent none, or a
// malformed one.
struct CallTrace {
  std::string request_id;  // 1 to 64 of [A-Za-z0-9._-]
  std::string trace_id;    // of W3C's traceparent: 32 hexadecimal digits
  std::string parent_id;   // the caller's span: 16
};

// Reads `context`'s metadata. Thread-safe while the call lives.
CallTrace ReadCallTrace(const grpc::ServerContextBase& context);

// For tests: the parts of ReadCallTrace.
bool IsRequestId(absl::string_view text);
bool ParseTraceParent(absl::string_view text, CallTrace* trace);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_CONVERT_CALL_TRACE_H_
