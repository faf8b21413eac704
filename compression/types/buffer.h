// Memory of tensors.
#ifndef NNI_COMPRESSION_COMPRESSION_TYPES_BUFFER_H_
#define NNI_COMPRESSION_COMPRESSION_TYPES_BUFFER_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "absl/types/span.h"
#include "compression/types/dtype.h"

namespace nni_compression::compression {

// A shared handle on a block of uninitialised memory, aligned to 64 bytes. The last handle frees
// it, so a result can be sent from where it was computed without a copy. Handles may be copied and
// dropped on any thread; the bytes are as thread-safe as bytes are.
class Buffer {
 public:
  Buffer() = default;

  // Address space only: pages cost memory when they are first written. Throws
  // std::bad_alloc; callers admit `size` against a budget first.
  static Buffer Allocate(int64_t size);

  // Foreign memory that `owner` keeps alive: a handle on it, not a copy. Of memory that may not be
  // written to, a reader's handle.
  static Buffer Alias(uint8_t* data, int64_t size, const std::shared_ptr<const void>& owner);

  uint8_t* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  absl::Span<const uint8_t> span() const { return {data_.get(), static_cast<size_t>(size_)}; }

  // A LibTorch view of the bytes, which keeps them alive. `dtype` must be one that LibTorch has.
  // Throws std::length_error unless the shape has exactly these bytes: whatever a caller missed, a
  // view never reaches beyond its buffer.
  at::Tensor AsTensor(DataType dtype, absl::Span<const int64_t> shape) const;

 private:
  std::shared_ptr<uint8_t> data_;
  int64_t size_ = 0;
};

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_TYPES_BUFFER_H_
