// Authentication of callers.
#ifndef NNI_COMPRESSION_SERVER_AUTH_AUTHENTICATOR_H_
#define NNI_COMPRESSION_SERVER_AUTH_AUTHENTICATOR_H_

#include <grpcpp/server_context.h>

#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/access/tenants.h"

namespace nni_compression::server {

// An authenticated caller and its permissions.
struct Caller {
  std::string tenant;  // owns the caller's sessions, weights and quotas
  bool admin = false;  // sees and closes the sessions of all tenants
  access::Quota quota = {};
};

// Consulted for every call of every method, health and reflection included, before the request is
// read. Thread-safe. Runs on gRPC's few threads, so it neither blocks nor computes.
class Authenticator {
 public:
  virtual ~Authenticator() = default;

  // Admits every caller, as the tenant "default".
  static std::shared_ptr<Authenticator> AllowAll();

  // `context` has the metadata, the peer and its certificate. UNAUTHENTICATED without valid
  // credentials, PERMISSION_DENIED when they do not allow `method`
  // ("nni.compression.v1.CompressionService/BindModel").
  virtual absl::StatusOr<Caller> Authenticate(const grpc::ServerContextBase& context,
                                              absl::string_view method) = 0;

  using Metadata = std::multimap<std::string, std::string>;

  // The same for a connection to the shared-memory socket, whose hello carries the metadata of a
  // call; called on that socket's thread. Refuses every caller unless it is overridden.
  virtual absl::StatusOr<Caller> AuthenticateLocal(const Metadata& metadata);
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_AUTH_AUTHENTICATOR_H_
