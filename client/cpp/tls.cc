#include "client/cpp/tls.h"

#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "client/cpp/environment.h"

namespace nni_compression::internal {
namespace {

absl::StatusOr<TlsOptions> FromEnvironment() {
  TlsOptions options;
  options.ca = Variable("NNI_COMPRESSION_TLS_CA");
  options.certificate = Variable("NNI_COMPRESSION_TLS_CERTIFICATE");
  options.key = Variable("NNI_COMPRESSION_TLS_KEY");
  const std::string wanted = Variable("NNI_COMPRESSION_TLS");
  if (wanted != "" && wanted != "0" && wanted != "1") {
    return absl::InvalidArgumentError(
        absl::StrCat("$NNI_COMPRESSION_TLS is '", wanted, "'; it must be 0 or 1"));
  }
  options.enabled = wanted == "1" ||
                    (wanted.empty() && !(options.ca + options.certificate + options.key).empty());
  return options;
}

absl::Status Read(const char* name, const std::string& path, std::string* text) {
  if (path.empty()) return absl::OkStatus();
  std::ifstream file(path, std::ios::binary);
  std::getline(file, *text, '\0');  // fails for a directory without an exception
  if (!file.bad() && file.eof() && !text->empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("tls.", name, " '", path, "' cannot be read"));
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> TlsCredentials(
    const std::optional<TlsOptions>& given) {
  const absl::StatusOr<TlsOptions> options =
      given ? absl::StatusOr<TlsOptions>(*given) : FromEnvironment();
  if (!options.ok()) return options.status();
  if (!options->enabled) return nullptr;
  if (options->certificate.empty() != options->key.empty()) {
    return absl::InvalidArgumentError("tls needs certificate and key, both or neither");
  }
  grpc::SslCredentialsOptions ssl;
  for (const absl::Status& status :
       {Read("ca", options->ca, &ssl.pem_root_certs),
        Read("key", options->key, &ssl.pem_private_key),
        Read("certificate", options->certificate, &ssl.pem_cert_chain)}) {
    if (!status.ok()) return status;
  }
  return grpc::SslCredentials(ssl);
}

}  // namespace nni_compression::internal
