// SHA-256, which names tokens, requests, record files and weights.
#ifndef NNI_COMPRESSION_SERVER_PLATFORM_SHA256_H_
#define NNI_COMPRESSION_SERVER_PLATFORM_SHA256_H_

#include <cstddef>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"

struct evp_md_ctx_st;

namespace nni_compression::server {

constexpr size_t kSha256Bytes = 32;

// kSha256Bytes long.
std::string Sha256(absl::string_view bytes);

// The digest of bytes that arrive in parts. Thread-compatible.
class Sha256Hasher {
 public:
  Sha256Hasher();

  void Add(const void* bytes, size_t size);
  // Called once, at the end.
  std::string Finish();

 private:
  std::unique_ptr<evp_md_ctx_st, void (*)(evp_md_ctx_st*)> context_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_PLATFORM_SHA256_H_
