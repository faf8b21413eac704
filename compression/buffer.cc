#include "compression/buffer.h"

#include <ATen/ops/from_blob.h>
#include <sys/mman.h>

#include <cstdlib>
#include <new>
#include <stdexcept>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace nni_compression::compression {
namespace {

constexpr size_t kAlignment = 64;

// The first write to each page of a fresh buffer costs more than the copy that does it, so large
// buffers ask for pages of 2 MiB.
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kHugeBuffer = 4 * kHugePage;

}  // namespace

Buffer Buffer::Allocate(int64_t size) {
  // Never nothing: an empty tensor still has an address.
  const auto needed = static_cast<size_t>(size) + 1;
  const size_t alignment = needed < kHugeBuffer ? kAlignment : kHugePage;
  const size_t rounded = (needed + alignment - 1) / alignment * alignment;
  auto* bytes = static_cast<uint8_t*>(std::aligned_alloc(alignment, rounded));
  if (bytes == nullptr) throw std::bad_alloc();
  // Without them it works too.
  if (alignment == kHugePage) madvise(bytes, rounded, MADV_HUGEPAGE);
  Buffer buffer;
  buffer.data_ = std::shared_ptr<uint8_t>(bytes, std::free);
  buffer.size_ = size;
  return buffer;
}

Buffer Buffer::Alias(uint8_t* data, int64_t size, const std::shared_ptr<const void>& owner) {
  Buffer buffer;
  buffer.data_ = std::shared_ptr<uint8_t>(owner, data);
  buffer.size_ = size;
  return buffer;
}

at::Tensor Buffer::AsTensor(DataType dtype, absl::Span<const int64_t> shape) const {
  const absl::StatusOr<int64_t> elements = CountElements(shape);
  if (!elements.ok() || ByteLength(dtype, *elements) != size_) {
    throw std::length_error(absl::StrCat("a buffer of ", size_, " bytes is not a tensor of ",
                                         DataTypeName(dtype), " and shape [",
                                         absl::StrJoin(shape, ", "), "]"));
  }
  return at::from_blob(
      data_.get(), at::IntArrayRef(shape.data(), shape.size()), [owner = data_](void*) {},
      at::TensorOptions().dtype(ToScalarType(dtype).value()));
}

}  // namespace nni_compression::compression
