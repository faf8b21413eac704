#include "server/auth/credentials.h"

#include <grpc/grpc_security_constants.h>
#include <grpcpp/security/auth_context.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace nni_compression::server {
namespace {

constexpr char kTokenKey[] = "authorization";
constexpr char kScheme[] = "Bearer ";

template <typename Entries>
std::vector<absl::string_view> ValuesOf(const Entries& metadata, const char* key) {
  std::vector<absl::string_view> values;
  const auto [first, last] = metadata.equal_range(key);
  for (auto it = first; it != last; ++it) {
    values.emplace_back(it->second.data(), it->second.size());
  }
  return values;
}

absl::Status Refused(absl::string_view why, absl::string_view how) {
  return absl::UnauthenticatedError(absl::StrCat(why, "; ", how));
}

absl::Status TokenRefused(absl::string_view why) {
  return Refused(why,
                 "the server requires `authorization: Bearer TOKEN`, which clients send if "
                 "$NNI_COMPRESSION_TOKEN_FILE is set");
}

// The names of one kind in the peer's certificate. gRPC lists those of verified certificates only.
std::vector<absl::string_view> NamesOf(const grpc::AuthContext& peer, const char* kind) {
  std::vector<absl::string_view> names;
  for (const grpc::string_ref& name : peer.FindPropertyValues(kind)) {
    names.emplace_back(name.data(), name.size());
  }
  return names;
}

}  // namespace

absl::StatusOr<Caller> Access::ByToken(const Values& authorization) const {
  // A second token may be meant to hide the first one from a proxy.
  if (authorization.size() != 1) return TokenRefused("the call has more than one token");
  if (!absl::StartsWithIgnoreCase(authorization[0], kScheme)) {
    return TokenRefused("the call's authorization is not a bearer token");
  }
  const absl::string_view token =
      absl::StripAsciiWhitespace(authorization[0].substr(sizeof(kScheme) - 1));
  std::optional<Caller> caller;
  if (options_.tenants != nullptr) caller = options_.tenants->Find(token);
  if (!caller) return TokenRefused("the call's token is not valid");
  return *std::move(caller);
}

absl::StatusOr<Caller> Access::ByName(absl::string_view name, absl::string_view what) const {
  if (!access::IsTenantName(name)) {
    return Refused(absl::StrCat("the name in ", what, " is not a valid tenant name"),
                   absl::StrCat("it must have ", access::kTenantNameRule));
  }
  if (options_.tenants != nullptr) return options_.tenants->Named(std::string(name));
  return Caller{std::string(name)};
}

absl::StatusOr<Caller> Access::Authenticate(const grpc::ServerContextBase& context,
                                            absl::string_view /*method*/) {
  const std::string peer = context.peer();
  const bool proxied = std::any_of(options_.trusted_proxies.begin(), options_.trusted_proxies.end(),
                                   [&](const Network& network) { return network.Has(peer); });
  const Values forwarded = ValuesOf(context.client_metadata(), kClientNameKey);
  if (forwarded.size() > (proxied ? 1 : 0)) {
    return Refused(absl::StrCat("the call has ", kClientNameKey),
                   "only a proxy of --trusted_proxy may send it, and only once");
  }
  const Values authorization = ValuesOf(context.client_metadata(), kTokenKey);
  if (!authorization.empty()) return ByToken(authorization);
  if (!forwarded.empty()) return ByName(forwarded[0], kClientNameKey);
  const std::shared_ptr<const grpc::AuthContext> certificate = context.auth_context();
  if (options_.certificates && !proxied && certificate != nullptr &&
      certificate->IsPeerAuthenticated()) {
    for (const char* kind :
         {GRPC_PEER_URI_PROPERTY_NAME, GRPC_PEER_DNS_PROPERTY_NAME, GRPC_X509_CN_PROPERTY_NAME}) {
      const Values names = NamesOf(*certificate, kind);
      if (names.size() == 1) return ByName(names[0], "the certificate");
      if (names.size() > 1) {
        return Refused("the certificate has more than one name of a kind",
                       "it must have one URI, DNS name or common name, the tenant's name");
      }
    }
    return Refused("the certificate has no name",
                   "it must have a URI, a DNS name or a common name, the tenant's name");
  }
  return TokenRefused("the call has no token");
}

absl::StatusOr<Caller> Access::AuthenticateLocal(const Metadata& metadata) {
  const Values authorization = ValuesOf(metadata, kTokenKey);
  if (authorization.empty()) return TokenRefused("the call has no token");
  return ByToken(authorization);
}

}  // namespace nni_compression::server
