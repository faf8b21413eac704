// How connections are encrypted.
#ifndef NNI_COMPRESSION_CLIENT_CPP_TLS_H_
#define NNI_COMPRESSION_CLIENT_CPP_TLS_H_

#include <grpcpp/security/credentials.h>

#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "nni_compression/client.h"

namespace nni_compression::internal {

// From the options, else from the environment. Null when TLS is off. INVALID_ARGUMENT when a file
// cannot be read, or one of certificate and key is missing.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> TlsCredentials(
    const std::optional<TlsOptions>& options);

}  // namespace nni_compression::internal

#endif  // NNI_COMPRESSION_CLIENT_CPP_TLS_H_
