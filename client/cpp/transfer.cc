#include "client/cpp/transfer.h"

namespace nni_compression::internal {

int64_t TotalBytes(absl::Span<const Tensor* const> tensors) {
  int64_t bytes = 0;
  for (const Tensor* tensor : tensors) bytes += static_cast<int64_t>(tensor->bytes.size());
  return bytes;
}

}  // namespace nni_compression::internal
