// Who is let in.
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

// The metadata key in which a trusted proxy says whose certificate it has verified.
inline constexpr char kClientNameKey[] = "nni-client-name";

struct AccessOptions {
  std::shared_ptr<TenantFile> tenants;  // null: nobody has a token
  bool certificates = false;            // the server verifies its clients' certificates
  std::vector<Network> trusted_proxies;
};

// The one place that decides who calls; nobody is let in but by one of these, in this order:
//  1. `authorization: Bearer TOKEN`, once, with a token of the file. One that is not valid is
//     refused, whatever else there is.
//  2. Over a connection from a trusted proxy: the client's name in `nni-client-name`, once. From
//     anywhere else that key is refused: the proxy did not strip it, or somebody forges it. The
//     proxy's own certificate is nobody's.
//  3. The name in the verified certificate of the client: its URI, else its DNS name, else its
//     common name. More than one of a kind is refused.
// Names are those of tenants, who may have limits and be operators by the file. Thread-safe.
class Access : public Authenticator {
 public:
  explicit Access(AccessOptions options) : options_(std::move(options)) {}

  absl::StatusOr<Caller> Authenticate(const grpc::ServerContextBase& context,
                                      absl::string_view method) override;

  // By a token only: the peer has no certificate there.
  absl::StatusOr<Caller> AuthenticateLocal(const Metadata& metadata) override;

 private:
  using Values = std::vector<absl::string_view>;

  absl::StatusOr<Caller> ByToken(const Values& authorization) const;
  absl::StatusOr<Caller> ByName(absl::string_view name, absl::string_view what) const;

  const AccessOptions options_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_AUTH_CREDENTIALS_H_
