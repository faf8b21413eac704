// Tenants by bearer tokens.
#ifndef NNI_COMPRESSION_SERVER_TOKEN_AUTHENTICATOR_H_
#define NNI_COMPRESSION_SERVER_TOKEN_AUTHENTICATOR_H_

#include <sys/stat.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/authenticator.h"
#include "server/clock.h"
#include "server/mutex.h"

namespace nni_compression::server {

// Lets in whoever sends `authorization: Bearer TOKEN` with a token of its file, as the token's
// tenant. The file has a line `SHA256 TENANT` for each token, the token's SHA-256 in hexadecimal
// and letters, digits, '.', '_' and '-'; lines that begin with '#' are remarks. A tenant may have
// several tokens. The file is read anew when it has changed, which is looked for once a second; one
// that is gone or cannot be read changes nothing, which is logged.
//
// The tokens have to be random (256 bits): their hashes are not salted. They travel as they are, so
// the connection has to be this host's or a private one.
class TokenAuthenticator : public Authenticator {
 public:
  // INVALID_ARGUMENT that names the line. The clock outlives it.
  static absl::StatusOr<std::shared_ptr<Authenticator>> Open(const std::string& path,
                                                             const Clock* clock = Clock::System());

  absl::StatusOr<std::string> Authenticate(const grpc::ServerContextBase& context,
                                           absl::string_view method) override;
  absl::StatusOr<std::string> AuthenticateLocal(const Metadata& metadata) override;

 private:
  struct Token {
    std::string digest;
    std::string tenant;
  };
  using Tokens = std::vector<Token>;
  // What tells one version of the file from another.
  struct Version {
    dev_t device = 0;
    ino_t inode = 0;
    off_t size = 0;
    timespec modified = {};
    bool operator==(const Version& other) const;
  };

  TokenAuthenticator(std::string path, const Clock* clock)
      : path_(std::move(path)), clock_(clock) {}

  absl::StatusOr<Tokens> Read() const;
  absl::StatusOr<Version> Look() const;
  std::shared_ptr<const Tokens> Current();
  absl::StatusOr<std::string> TenantOf(absl::string_view authorization);

  const std::string path_;
  const Clock* const clock_;
  Mutex mutex_;
  std::shared_ptr<const Tokens> tokens_ ABSL_GUARDED_BY(mutex_);
  Version version_ ABSL_GUARDED_BY(mutex_);
  absl::Time looked_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_TOKEN_AUTHENTICATOR_H_
