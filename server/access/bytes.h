// Parses sizes in bytes with optional suffixes.
#ifndef NNI_COMPRESSION_SERVER_ACCESS_BYTES_H_
#define NNI_COMPRESSION_SERVER_ACCESS_BYTES_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace nni_compression::access {

// "4G", "512M", "100K", "1000000": a number of bytes with an optional binary suffix.
// INVALID_ARGUMENT for anything else.
absl::StatusOr<int64_t> ParseBytes(absl::string_view text);

}  // namespace nni_compression::access

#endif  // NNI_COMPRESSION_SERVER_ACCESS_BYTES_H_
