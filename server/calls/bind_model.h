// BindModel: opens a session.
#ifndef NNI_COMPRESSION_SERVER_CALLS_BIND_MODEL_H_
#define NNI_COMPRESSION_SERVER_CALLS_BIND_MODEL_H_

#include <memory>

#include "nni/compression/v1/compression.pb.h"
#include "server/calls/unary_call.h"

namespace nni_compression::server {

// Validates and binds on the executor, then finishes the call. Request and response live until
// then.
void BindModel(const std::shared_ptr<UnaryCall>& call,
               const nni::compression::v1::BindModelRequest& request,
               nni::compression::v1::BindModelResponse* response);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_CALLS_BIND_MODEL_H_
