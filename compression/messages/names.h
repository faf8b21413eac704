// Names that callers choose.
#ifndef NNI_COMPRESSION_COMPRESSION_MESSAGES_NAMES_H_
#define NNI_COMPRESSION_COMPRESSION_MESSAGES_NAMES_H_

#include <cstddef>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace nni_compression::compression {

// Length of the UTF-8 sequence that `text`, which is not empty, begins with; 0 where it is invalid.
size_t Utf8SequenceLength(absl::string_view text);

// The maximum length of the name of a layer or a tensor.
constexpr size_t kMaxLayerNameBytes = 1024;

// 1 to `max_bytes` bytes of UTF-8 without control characters. INVALID_ARGUMENT begins with `path`.
absl::Status CheckName(absl::string_view name, size_t max_bytes, absl::string_view path);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_MESSAGES_NAMES_H_
