#include "server/authenticator.h"

namespace nni_compression::server {
namespace {

class AllowAllAuthenticator : public Authenticator {
 public:
  absl::StatusOr<std::string> Authenticate(const grpc::ServerContextBase&,
                                           absl::string_view) override {
    return std::string("default");
  }
};

}  // namespace

std::shared_ptr<Authenticator> Authenticator::AllowAll() {
  return std::make_shared<AllowAllAuthenticator>();
}

}  // namespace nni_compression::server
