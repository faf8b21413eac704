#include "compression/types/buffer.h"

#include <ATen/ops/from_blob.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace nni_compression::compression {
namespace {

constexpr size_t kAlignment = 64;

// The page fault of the first write to a page costs more than copying the page, so large buffers
// request huge pages of 2 MiB.
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kHugeBuffer = 4 * kHugePage;

// Aligned here: glibc's aligned_alloc needs a larger block to find an aligned one, so it cannot
// reuse the gap of a freed buffer of the same size, and the heap would grow with every buffer.
std::shared_ptr<uint8_t> FromHeap(size_t size) {
  void* const block = std::malloc(size + kAlignment - 1);
  if (block == nullptr) throw std::bad_alloc();
  const auto address = reinterpret_cast<uintptr_t>(block);
  auto* const bytes =
      static_cast<uint8_t*>(block) + (kAlignment - address % kAlignment) % kAlignment;
  return {std::shared_ptr<void>(block, std::free), bytes};
}

// The heap keeps freed blocks between live ones, which wastes too much at this size.
std::shared_ptr<uint8_t> FromKernel(size_t size) {
  const size_t rounded = (size + kHugePage - 1) / kHugePage * kHugePage;
  void* const mapping = mmap(nullptr, rounded + kHugePage, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  auto* const begin = static_cast<uint8_t*>(mapping);
  const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(begin) % kHugePage) % kHugePage;
  uint8_t* const bytes = begin + before;
  if (before > 0) munmap(begin, before);
  munmap(bytes + rounded, kHugePage - before);
  madvise(bytes, rounded, MADV_HUGEPAGE);  // an optimization; errors are ignored
  return std::shared_ptr<uint8_t>(bytes, [rounded](uint8_t* mapped) { munmap(mapped, rounded); });
}

}  // namespace

Buffer Buffer::Allocate(int64_t size) {
  // Never empty: an empty tensor still has an address.
  const auto needed = static_cast<size_t>(size) + 1;
  Buffer buffer;
  buffer.data_ = needed < kHugeBuffer ? FromHeap(needed) : FromKernel(needed);
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
