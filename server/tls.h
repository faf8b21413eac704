// Encryption, and certificates of clients.
#ifndef NNI_COMPRESSION_SERVER_TLS_H_
#define NNI_COMPRESSION_SERVER_TLS_H_

#include <grpcpp/security/server_credentials.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace nni_compression::server {

// Files in PEM. They are looked at once a second: connections that are made after a change have the
// new ones, and those that live go on. A certificate and its key have to change as one, by a link
// to a folder of both, say; as long as they do not match, no new connection is made.
struct TlsOptions {
  std::string certificate;  // with its chain; empty: connections are not encrypted
  std::string key;
  std::string client_ca;  // who signs clients' certificates; empty: they need none

  bool enabled() const { return !certificate.empty(); }
};

// INVALID_ARGUMENT when a file cannot be read, the key is another certificate's, or one of the two
// is missing.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(
    const TlsOptions& options);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_TLS_H_
