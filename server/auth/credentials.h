// Authentication by token, trusted proxy or client certificate.
#ifndef NNI_COMPRESSION_SERVER_AUTH_CREDENTIALS_H_
#define NNI_COMPRESSION_SERVER_AUTH_CREDENTIALS_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/auth/authenticator.h"
#include "server/auth/tenant_file.h"
#include "server/net/network.h"

namespace nni_compression::server {

// The metadata key in which a trusted proxy sends the name of the client certificate that it has
// verified.
inline constexpr char kClientNameKey[] = "nni-client-name";

struct AccessOptions {
  std::shared_ptr<TenantFile> tenants;  // null: there are no tokens
  bool certificates = false;            // mTLS: the server verifies client certificates
  std::vector<Network> trusted_proxies;
};

// The only authenticator of a server that has one configured. A caller is admitted by the first of:
//  1. `authorization: Bearer TOKEN`, once, with a token of the file. An invalid token is refused,
//     whatever other credentials there are.
//  2. On a connection from a trusted proxy: the client's name in `nni-client-name`, once. From any
//     other peer that key is refused: a proxy did not strip it, or it is forged. The proxy's own
//     certificate identifies no tenant.
//  3. The name in the verified client certificate: its URI, else its DNS name, else its common
//     name. More than one of a kind is refused.
// The name is the tenant's; the file may give it quotas and make it an operator. Thread-safe.
class Access : public Authenticator {
 public:
  explicit Access(AccessOptions options) : options_(std::move(options)) {}

  absl::StatusOr<Caller> Authenticate(const grpc::ServerContextBase& context,
                                      absl::string_view method) override;

  // By token only: the peer has no certificate there.
  absl::StatusOr<Caller> AuthenticateLocal(const Metadata& metadata) override;

 private:
  using Values = std::vector<absl::string_view>;

  absl::StatusOr<Caller> ByToken(const Values& authorization) const;
  absl::StatusOr<Caller> ByName(absl::string_view name, absl::string_view what) const;

  const AccessOptions options_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_AUTH_CREDENTIALS_H_
