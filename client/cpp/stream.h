// Runs one streaming call.
#ifndef NNI_COMPRESSION_CLIENT_CPP_STREAM_H_
#define NNI_COMPRESSION_CLIENT_CPP_STREAM_H_

#include <grpcpp/support/byte_buffer.h>

#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "client/cpp/connection.h"
#include "client/cpp/retry.h"
#include "client/cpp/upload.h"

namespace nni_compression::internal {

struct StreamCall {
  std::string method;  // "CalcMask"
  const Route& route;
  absl::Time deadline;
};

// Sends the upload's messages and hands each reply to `on_message`, concurrently but all in the
// caller's thread. An error of `on_message` cancels the call and is its outcome. Returns when gRPC
// has dropped every slice of `loans`.
Outcome RunStream(const Connection& connection, const StreamCall& call, Upload& upload,
                  const Loans& loans,
                  absl::FunctionRef<absl::Status(const grpc::ByteBuffer& message)> on_message);

}  // namespace nni_compression::internal

#endif  // NNI_COMPRESSION_CLIENT_CPP_STREAM_H_
