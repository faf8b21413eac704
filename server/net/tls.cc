#include "server/net/tls.h"

#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpcpp/version_info.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <sys/stat.h>

#include <ctime>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/base/log.h"
#include "server/base/mutex.h"

namespace nni_compression::server {
namespace {

constexpr size_t kMaxPemBytes = 1 << 20;

template <typename T>
using Owned = std::unique_ptr<T, void (*)(T*)>;
using Certificates = std::vector<Owned<X509>>;
using File = FileWatcher::File;

// The contents of the files.
struct Pem {
  std::string certificate;
  std::string key;
  std::string client_ca;  // empty: clients need no certificate
};

absl::Status WrongPem(const File& file, absl::string_view what) {
  ERR_clear_error();
  return absl::InvalidArgumentError(absl::StrCat(file.flag, " '", file.path, "' ", what));
}

// Up to the first NUL, like gRPC.
Owned<BIO> PemReader(const std::string& text) {
  return Owned<BIO>(BIO_new_mem_buf(text.c_str(), -1), BIO_free_all);
}

absl::StatusOr<Certificates> ReadCertificates(const File& file, const std::string& text) {
  const Owned<BIO> reader = PemReader(text);
  Certificates certificates;
  while (X509* const read = PEM_read_bio_X509(reader.get(), nullptr, nullptr, nullptr)) {
    certificates.emplace_back(read, X509_free);
  }
  if (certificates.empty()) return WrongPem(file, "cannot be read as a certificate in PEM");
  if (ERR_GET_REASON(ERR_peek_last_error()) != PEM_R_NO_START_LINE) {
    return WrongPem(file, absl::StrCat("cannot be read as certificates in PEM after number ",
                                       certificates.size()));
  }
  ERR_clear_error();
  return certificates;
}

absl::Time TimeOf(const ASN1_TIME* time) {
  std::tm parts = {};
  if (ASN1_TIME_to_tm(time, &parts) != 1) return absl::InfinitePast();
  return absl::FromTimeT(timegm(&parts));
}

// Returns when the certificate expires. The files are those of `pem`, in the same order.
absl::StatusOr<absl::Time> CheckPem(const std::vector<File>& files, const Pem& pem) {
  const absl::StatusOr<Certificates> chain = ReadCertificates(files[0], pem.certificate);
  if (!chain.ok()) return chain.status();
  X509* const certificate = chain->front().get();
  const auto no_passphrase = [](char*, int, int, void*) { return 0; };
  const Owned<EVP_PKEY> key(
      PEM_read_bio_PrivateKey(PemReader(pem.key).get(), nullptr, no_passphrase, nullptr),
      EVP_PKEY_free);
  if (key == nullptr)
    return WrongPem(files[1], "cannot be read as a key without a passphrase in PEM");
  if (X509_check_private_key(certificate, key.get()) != 1) {
    return WrongPem(files[1],
                    absl::StrCat("is not the key of ", files[0].flag, " '", files[0].path, "'"));
  }
  const Owned<SSL_CTX> context(SSL_CTX_new(TLS_server_method()), SSL_CTX_free);
  if (context == nullptr || SSL_CTX_use_certificate(context.get(), certificate) != 1 ||
      SSL_CTX_use_PrivateKey(context.get(), key.get()) != 1) {
    const char* const reason = ERR_reason_error_string(ERR_peek_error());
    return WrongPem(files[0], absl::StrCat("cannot be used for TLS: ",
                                           reason == nullptr ? "OpenSSL rejects it" : reason));
  }
  if (files.size() > 2) {
    const absl::StatusOr<Certificates> authorities = ReadCertificates(files[2], pem.client_ca);
    if (!authorities.ok()) return authorities.status();
  }
  const absl::Time begin = TimeOf(X509_get0_notBefore(certificate));
  const absl::Time end = TimeOf(X509_get0_notAfter(certificate));
  if (const absl::Time now = absl::Now(); now < begin || now > end) {
    Log(LogLevel::kError, "certificate_not_valid",
        {{"path", files[0].path},
         {"from", absl::FormatTime(absl::RFC3339_sec, begin, absl::UTCTimeZone())},
         {"to", absl::FormatTime(absl::RFC3339_sec, end, absl::UTCTimeZone())}});
  }
  return end;
}

// Owns gRPC's credentials.
class TlsServerCredentials : public grpc::ServerCredentials {
 public:
#if GRPC_CPP_VERSION_MAJOR == 1 && GRPC_CPP_VERSION_MINOR < 54
  explicit TlsServerCredentials(grpc_server_credentials* credentials)
      : credentials_(credentials, grpc_server_credentials_release) {}

  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {}

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_.get());
  }

  const Owned<grpc_server_credentials> credentials_;
#else
  explicit TlsServerCredentials(grpc_server_credentials* credentials)
      : ServerCredentials(credentials) {}
#endif
};

}  // namespace

// The certificates of new connections.
class TlsCertificates::Current {
 public:
  void Set(Pem pem, absl::Time expiry) {
    MutexLock lock(&mutex_);
    pem_ = std::move(pem);
    expiry_ = expiry;
    fetched_ = false;
  }

  absl::Time expiry() const {
    MutexLock lock(&mutex_);
    return expiry_;
  }

  bool asks_clients() const {
    MutexLock lock(&mutex_);
    return !pem_.client_ca.empty();
  }

  // gRPC calls this for every connection, on the thread that accepted it.
  static grpc_ssl_certificate_config_reload_status Fetch(
      void* current, grpc_ssl_server_certificate_config** config) {
    auto* const self = static_cast<Current*>(current);
    MutexLock lock(&self->mutex_);
    if (self->fetched_) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    const grpc_ssl_pem_key_cert_pair pair = {self->pem_.key.c_str(),
                                             self->pem_.certificate.c_str()};
    // gRPC requires authorities here even without mTLS: any certificates will do then.
    const std::string& authorities =
        self->pem_.client_ca.empty() ? self->pem_.certificate : self->pem_.client_ca;
    *config = grpc_ssl_server_certificate_config_create(authorities.c_str(), &pair, 1);
    self->fetched_ = true;
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }

 private:
  mutable Mutex mutex_;
  Pem pem_ ABSL_GUARDED_BY(mutex_);
  absl::Time expiry_ ABSL_GUARDED_BY(mutex_);
  bool fetched_ ABSL_GUARDED_BY(mutex_) = false;  // gRPC has fetched the current version
};

absl::StatusOr<std::unique_ptr<TlsCertificates>> TlsCertificates::Open(const TlsOptions& options) {
  if (options.certificate.empty() || options.key.empty()) {
    return absl::InvalidArgumentError(
        "tls_certificate and tls_key must both be set; tls_client_ca needs them, too");
  }
  std::vector<File> files = {{"tls_certificate", options.certificate}, {"tls_key", options.key}};
  if (!options.client_ca.empty()) files.push_back({"tls_client_ca", options.client_ca});
  auto current = std::make_shared<Current>();
  const auto load = [current, files](const std::vector<FileContents>& contents) {
    Pem pem{contents[0].bytes, contents[1].bytes, contents.size() > 2 ? contents[2].bytes : ""};
    const absl::StatusOr<absl::Time> expiry = CheckPem(files, pem);
    if (!expiry.ok()) return expiry.status();
    if ((contents[1].mode & S_IROTH) != 0) {
      Log(LogLevel::kWarning, "key_readable_for_everybody", {{"path", files[1].path}});
    }
    Log(LogLevel::kInfo, "certificates_read",
        {{"expiry", absl::FormatTime(absl::RFC3339_sec, *expiry, absl::UTCTimeZone())}});
    current->Set(std::move(pem), *expiry);
    return absl::OkStatus();
  };
  auto watcher = FileWatcher::Open({"certificates", files, kMaxPemBytes}, load);
  if (!watcher.ok()) return watcher.status();
  return std::unique_ptr<TlsCertificates>(
      new TlsCertificates(std::move(current), *std::move(watcher)));
}

std::shared_ptr<grpc::ServerCredentials> TlsCertificates::Credentials() const {
  grpc_ssl_server_credentials_options* const options =
      grpc_ssl_server_credentials_create_options_using_config_fetcher(
          current_->asks_clients() ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                                   : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE,
          &Current::Fetch, current_.get());
  return std::make_shared<TlsServerCredentials>(
      grpc_ssl_server_credentials_create_with_options(options));
}

absl::Time TlsCertificates::expiry() const { return current_->expiry(); }

}  // namespace nni_compression::server
