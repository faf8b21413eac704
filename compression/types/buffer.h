// Memory of tensors.
#ifndef NNI_COMPRESSION_COMPRESSION_TYPES_BUFFER_H_
#define NNI_COMPRESSION_COMPRESSION_TYPES_BUFFER_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "absl/types/span.h"
#include "compression/types/dtype.h"

namespace nni_compression::compression {

// A shared handle to a block of uninitialised memory, aligned to 64 bytes. The last handle frees
// it, so a result can be sent without a copy. Handles may be copied and dropped on any thread; the
// bytes have no synchronization.
class Buffer {
 public:
  Buffer() = default;

  // Allocates address space only: pages take memory when they are first written. Throws
  // std::bad_alloc; callers reserve `size` from a budget first.
  static Buffer Allocate(int64_t size);

  // A handle to external memory that `owner` keeps alive, not a copy. For read-only memory the
  // handle must only be read.
  static Buffer Alias(uint8_t* data, int64_t size, const std::shared_ptr<const void>& owner);

  uint8_t* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  absl::Span<const uint8_t> span() const { return {data_.get(), static_cast<size_t>(size_)}; }

  // A LibTorch view of the bytes, which keeps them alive. `dtype` must be one that LibTorch has.
  // Throws std::length_error unless the shape has exactly these bytes, so that a view never exceeds
  // its buffer.
  at::Tensor AsTensor(DataType dtype, absl::Span<const int64_t> shape) const;

 private:
  std::shared_ptr<uint8_t> data_;
  int64_t size_ = 0;
};

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_TYPES_BUFFER_H_
