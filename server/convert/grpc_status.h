// The one place where statuses change type.
#ifndef NNI_COMPRESSION_SERVER_CONVERT_GRPC_STATUS_H_
#define NNI_COMPRESSION_SERVER_CONVERT_GRPC_STATUS_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace nni_compression::server {

// The same code; control characters of the message are escaped and it is cut to what fits into
// trailing metadata. The details say when to retry, as RetryAfter does.
grpc::Status ToGrpc(const absl::Status& status);

// As ToGrpc, with the trailers of the status added to the call, which is about to finish; an error
// repeats the caller's request id.
grpc::Status FinishWith(const absl::Status& status, grpc::ServerContextBase* context);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_CONVERT_GRPC_STATUS_H_
