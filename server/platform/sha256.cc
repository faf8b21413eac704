#include "server/platform/sha256.h"

#include <openssl/evp.h>

#include <cstdio>
#include <cstdlib>

namespace nni_compression::server {
namespace {

// A digest of anything but the bytes would pass for that of others.
void Check(int result) {
  if (result == 1) return;
  std::fputs("OpenSSL cannot compute SHA-256\n", stderr);
  std::abort();
}

}  // namespace

std::string Sha256(absl::string_view bytes) {
  Sha256Hasher hasher;
  hasher.Add(bytes.data(), bytes.size());
  return hasher.Finish();
}

Sha256Hasher::Sha256Hasher() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
  Check(EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr));
}

void Sha256Hasher::Add(const void* bytes, size_t size) {
  Check(EVP_DigestUpdate(context_.get(), bytes, size));
}

std::string Sha256Hasher::Finish() {
  std::string digest(kSha256Bytes, '\0');
  Check(
      EVP_DigestFinal_ex(context_.get(), reinterpret_cast<unsigned char*>(digest.data()), nullptr));
  return digest;
}

}  // namespace nni_compression::server
