#include "client/cpp/transfer.h"

namespace nni_compression::internal {

int64_t Elements(const Tensor& tensor) {
  int64_t elements = 1;
  for (const int64_t dimension : tensor.shape) elements *= dimension;
  return elements;
}

int64_t TotalBytes(absl::Span<const Tensor* const> tensors) {
  int64_t bytes = 0;
  for (const Tensor* tensor : tensors) bytes += static_cast<int64_t>(tensor->bytes.size());
  return bytes;
}

}  // namespace nni_compression::internal
