// SHA-256 of bytes that are there as a whole.
#ifndef NNI_COMPRESSION_SERVER_BASE_SHA256_H_
#define NNI_COMPRESSION_SERVER_BASE_SHA256_H_

#include <string>

#include "absl/strings/string_view.h"

namespace nni_compression::server {

// 32 bytes.
std::string Sha256(absl::string_view bytes);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_BASE_SHA256_H_
