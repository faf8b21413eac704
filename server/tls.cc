#include "server/tls.h"

#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include "absl/strings/str_cat.h"

namespace nni_compression::server {
namespace {

constexpr unsigned kLookEverySeconds = 1;

template <typename T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

absl::Status Unreadable(const char* flag, const std::string& path, const char* what) {
  ERR_clear_error();
  return absl::InvalidArgumentError(
      absl::StrCat(flag, " '", path, "' cannot be read as ", what, " in PEM"));
}

Owned<BIO> Open(const std::string& path) {
  return Owned<BIO>(BIO_new_file(path.c_str(), "r"), BIO_free_all);
}

absl::StatusOr<Owned<X509>> ReadCertificate(const char* flag, const std::string& path) {
  const Owned<BIO> file = Open(path);
  Owned<X509> certificate(
      file == nullptr ? nullptr : PEM_read_bio_X509(file.get(), nullptr, nullptr, nullptr),
      X509_free);
  if (certificate == nullptr) return Unreadable(flag, path, "a certificate");
  return certificate;
}

absl::Status CheckFiles(const TlsOptions& options) {
  const auto certificate = ReadCertificate("tls_certificate", options.certificate);
  if (!certificate.ok()) return certificate.status();
  const auto no_passphrase = [](char*, int, int, void*) { return 0; };
  const Owned<BIO> file = Open(options.key);
  const Owned<EVP_PKEY> key(
      file == nullptr ? nullptr
                      : PEM_read_bio_PrivateKey(file.get(), nullptr, no_passphrase, nullptr),
      EVP_PKEY_free);
  if (key == nullptr) return Unreadable("tls_key", options.key, "a key without a passphrase");
  if (X509_check_private_key(certificate->get(), key.get()) != 1) {
    ERR_clear_error();
    return absl::InvalidArgumentError(absl::StrCat("tls_key '", options.key,
                                                   "' is not the key of tls_certificate '",
                                                   options.certificate, "'"));
  }
  if (options.client_ca.empty()) return absl::OkStatus();
  return ReadCertificate("tls_client_ca", options.client_ca).status();
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(
    const TlsOptions& options) {
  if (options.certificate.empty() && options.key.empty() && options.client_ca.empty()) {
    return grpc::InsecureServerCredentials();
  }
  if (options.certificate.empty() || options.key.empty()) {
    return absl::InvalidArgumentError(
        "tls_certificate and tls_key have to be given both, and with tls_client_ca, too");
  }
  if (absl::Status status = CheckFiles(options); !status.ok()) return status;
  namespace tls = grpc::experimental;
  tls::TlsServerCredentialsOptions credentials(
      std::make_shared<tls::FileWatcherCertificateProvider>(options.key, options.certificate,
                                                            options.client_ca, kLookEverySeconds));
  credentials.watch_identity_key_cert_pairs();
  if (!options.client_ca.empty()) {
    credentials.watch_root_certs();
    credentials.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  return tls::TlsServerCredentials(credentials);
}

}  // namespace nni_compression::server
