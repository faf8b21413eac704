#include "compression/tensors/mask.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "compression/kernels/loops.h"

namespace nni_compression::compression {
namespace {

// The bits of the last byte that stand for elements.
uint8_t TailBits(int64_t elements) {
  return elements % 8 == 0 ? 0xff : static_cast<uint8_t>((1 << (elements % 8)) - 1);
}

}  // namespace

Mask::Mask(Buffer bits, int64_t elements)
    : bits_(std::move(bits)),
      elements_(elements),
      pruned_(elements - CurrentLoops().count_ones(bits_.data(), bits_.size())) {}

Mask Mask::Ones(int64_t elements) {
  Buffer bits = Buffer::Allocate(ByteLength(DataType::kBit, elements));
  if (bits.size() > 0) {
    std::memset(bits.data(), 0xff, bits.size());
    bits.data()[bits.size() - 1] = TailBits(elements);
  }
  return Mask(std::move(bits), elements);
}

absl::StatusOr<Mask> Mask::FromBits(Buffer bits, int64_t elements) {
  const int64_t size = ByteLength(DataType::kBit, elements);
  if (elements < 1 || bits.size() != size) {
    return absl::InvalidArgumentError(absl::StrCat(
        "mask has ", bits.size(), " bytes; it must have ", size, " for ", elements, " elements"));
  }
  if ((bits.data()[size - 1] & ~TailBits(elements)) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("mask has a bit set after its last element ",
                                                   elements - 1, "; these bits must be 0"));
  }
  return Mask(std::move(bits), elements);
}

void Mask::Unpack(int64_t begin, absl::Span<uint8_t> out) const {
  CurrentLoops().unpack(bits_.data(), begin, static_cast<int64_t>(out.size()), out.data());
}

bool operator==(const Mask& a, const Mask& b) {
  return a.elements_ == b.elements_ && a.bits_.span() == b.bits_.span();
}

}  // namespace nni_compression::compression
