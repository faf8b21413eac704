#include "server/platform/sha256.h"

#include <openssl/evp.h>

namespace nni_compression::server {

std::string Sha256(absl::string_view bytes) {
  Sha256Hasher hasher;
  hasher.Add(bytes.data(), bytes.size());
  return hasher.Finish();
}

Sha256Hasher::Sha256Hasher() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
  EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr);
}

void Sha256Hasher::Add(const void* bytes, size_t size) {
  EVP_DigestUpdate(context_.get(), bytes, size);
}

std::string Sha256Hasher::Finish() {
  std::string digest(kSha256Bytes, '\0');
  EVP_DigestFinal_ex(context_.get(), reinterpret_cast<unsigned char*>(digest.data()), nullptr);
  return digest;
}

}  // namespace nni_compression::server
