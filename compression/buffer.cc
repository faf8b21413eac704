#include "compression/buffer.h"

#include <ATen/ops/from_blob.h>

#include <cstdlib>
#include <new>

namespace nni_compression::compression {
namespace {

constexpr size_t kAlignment = 64;

}  // namespace

Buffer Buffer::Allocate(int64_t size) {
  // Never nothing: an empty tensor still has an address.
  const size_t rounded = (static_cast<size_t>(size) + kAlignment) / kAlignment * kAlignment;
  auto* bytes = static_cast<uint8_t*>(std::aligned_alloc(kAlignment, rounded));
  if (bytes == nullptr) throw std::bad_alloc();
  Buffer buffer;
  buffer.data_ = std::shared_ptr<uint8_t>(bytes, std::free);
  buffer.size_ = size;
  return buffer;
}

at::Tensor Buffer::AsTensor(DataType dtype, absl::Span<const int64_t> shape) const {
  return at::from_blob(
      data_.get(), at::IntArrayRef(shape.data(), shape.size()), [owner = data_](void*) {},
      at::TensorOptions().dtype(ToScalarType(dtype).value()));
}

}  // namespace nni_compression::compression
