// Conversion of absl::Status to grpc::Status, for the whole server.
#ifndef NNI_COMPRESSION_SERVER_CONVERT_GRPC_STATUS_H_
#define NNI_COMPRESSION_SERVER_CONVERT_GRPC_STATUS_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace nni_compression::server {

// Keeps the code; the message is escaped and truncated to fit into trailing metadata. The details
// carry the RetryInfo of RetryAfter.
grpc::Status ToGrpc(const absl::Status& status);

// As ToGrpc, and adds the status' trailers to the call, which is about to finish; for an error also
// the caller's request id.
grpc::Status FinishWith(const absl::Status& status, grpc::ServerContextBase* context);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_CONVERT_GRPC_STATUS_H_
