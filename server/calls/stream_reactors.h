// gRPC reactors that run a StreamCall.
#ifndef NNI_COMPRESSION_SERVER_CALLS_STREAM_REACTORS_H_
#define NNI_COMPRESSION_SERVER_CALLS_STREAM_REACTORS_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <memory>

#include "absl/status/status.h"
#include "server/calls/call_context.h"
#include "server/tensors/stream_call.h"

namespace nni_compression::server {

using BidiReactor = grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>;
using ReadReactor = grpc::ServerReadReactor<grpc::ByteBuffer>;

// Runs `call`; the reactor deletes itself when gRPC is done with it. `context` is that of the
// admission.
BidiReactor* StartBidi(grpc::CallbackServerContext* grpc, std::shared_ptr<CallContext> context,
                       std::shared_ptr<StreamCall> call);

// The same for a call with a single reply.
ReadReactor* StartRead(grpc::CallbackServerContext* grpc, std::shared_ptr<CallContext> context,
                       std::shared_ptr<StreamCall> call, grpc::ByteBuffer* response);

// Reactors that finish at once.
BidiReactor* RefuseBidi(const grpc::Status& status);
ReadReactor* RefuseRead(const grpc::Status& status);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_CALLS_STREAM_REACTORS_H_
