// TLS, and mutual TLS (mTLS).
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

// PEM files.
struct TlsOptions {
  std::string certificate;  // with its chain; empty: connections are not encrypted
  std::string key;
  std::string client_ca;  // authorities of client certificates (mTLS); empty: none are required

  bool enabled() const { return !certificate.empty(); }
  bool configured() const { return !certificate.empty() || !key.empty() || !client_ca.empty(); }
};

// The certificate, its key and the authorities of client certificates, reloaded when their files
// change. New connections get the last usable version; open ones continue. Files that are missing,
// half-written or do not match change nothing, which is logged. A certificate that is expired or
// not valid yet and a key that other users can read are logged, too, but used. gRPC gets the
// checked contents: its own file watcher aborts the process when a file is empty. Thread-safe.
class TlsCertificates {
 public:
  // INVALID_ARGUMENT when a file cannot be read or used, the key does not match the certificate, or
  // one of the two is missing.
  static absl::StatusOr<std::unique_ptr<TlsCertificates>> Open(const TlsOptions& options);

  // Starts watching the files: changes take effect within a second. At most once.
  void Watch() { watcher_->Start(); }

  // As FileWatcher::Poll.
  void Poll() { watcher_->Poll(); }

  // For one port of one server; the server must not outlive this.
  std::shared_ptr<grpc::ServerCredentials> Credentials() const;

  // When the certificate of new connections expires.
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
