// Encryption, and client certificates.
#ifndef NNI_COMPRESSION_SERVER_NET_TLS_H_
#define NNI_COMPRESSION_SERVER_NET_TLS_H_

#include <grpcpp/security/server_credentials.h>

#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/base/file_watcher.h"

namespace nni_compression::server {

// Files in PEM.
struct TlsOptions {
  std::string certificate;  // with its chain; empty: connections are not encrypted
  std::string key;
  std::string client_ca;  // who signs clients' certificates; empty: they need none

  bool enabled() const { return !certificate.empty(); }
  bool configured() const { return !certificate.empty() || !key.empty() || !client_ca.empty(); }
};

// The certificate, its key and the clients' authorities, as they are in their files now. New
// connections get what was there last that TLS can use, live ones go on. Files that are missing,
// half written, or do not belong together change nothing, which is logged; so are a certificate
// that is not valid now and a key that everybody can read, which are used. gRPC is handed what was
// checked here: its own watcher of files ends the process when a file is empty. Thread-safe.
class TlsCertificates {
 public:
  // INVALID_ARGUMENT when a file cannot be read or used, the key is another certificate's, or one
  // of the two is missing.
  static absl::StatusOr<std::unique_ptr<TlsCertificates>> Open(const TlsOptions& options);

  // Changes of the files count within a second from now on. Once.
  void Watch() { watcher_->Start(); }

  // As FileWatcher::Look.
  void Look() { watcher_->Look(); }

  // For one port of one server, which must not outlive this.
  std::shared_ptr<grpc::ServerCredentials> Credentials() const;

  // When the certificate that new connections get expires.
  absl::Time expiry() const;

 private:
  class Current;
  TlsCertificates(std::shared_ptr<Current> current, std::unique_ptr<FileWatcher> watcher)
      : current_(std::move(current)), watcher_(std::move(watcher)) {}

  const std::shared_ptr<Current> current_;
  const std::unique_ptr<FileWatcher> watcher_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_NET_TLS_H_
