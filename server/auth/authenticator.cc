#include "server/auth/authenticator.h"

namespace nni_compression::server {
namespace {

class AllowAllAuthenticator : public Authenticator {
 public:
  absl::StatusOr<Caller> Authenticate(const grpc::ServerContextBase&, absl::string_view) override {
    return Caller{"default"};
  }
  absl::StatusOr<Caller> AuthenticateLocal(const Metadata&) override { return Caller{"default"}; }
};

}  // namespace

absl::StatusOr<Caller> Authenticator::AuthenticateLocal(const Metadata&) {
  return absl::UnauthenticatedError(
      "the server's authenticator does not support the shared-memory socket");
}

std::shared_ptr<Authenticator> Authenticator::AllowAll() {
  return std::make_shared<AllowAllAuthenticator>();
}

}  // namespace nni_compression::server
