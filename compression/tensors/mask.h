// Packed masks: one bit a weight, 1 = kept.
#ifndef NNI_COMPRESSION_COMPRESSION_TENSORS_MASK_H_
#define NNI_COMPRESSION_COMPRESSION_TENSORS_MASK_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compression/kernels/words.h"
#include "compression/types/buffer.h"

namespace nni_compression::compression {

// An immutable mask over a weight's elements in C order. Bit 0 of byte 0 is element 0; the bits
// after the last element are 0. Copies share the bits. Thread-safe.
class Mask {
 public:
  // A mask that keeps everything.
  static Mask Ones(int64_t elements);

  // Shares the bits, which the caller must not write any more. INVALID_ARGUMENT when the size is
  // not ceil(elements / 8) or a bit after the last element is set.
  static absl::StatusOr<Mask> FromBits(Buffer bits, int64_t elements);

  int64_t elements() const { return elements_; }
  int64_t pruned() const { return pruned_; }  // zeros
  double sparsity() const {                   // fraction removed, in [0, 1]
    return static_cast<double>(pruned_) / static_cast<double>(elements_);
  }
  bool kept(int64_t i) const { return BitAt(bits_.data(), i); }
  const Buffer& bits() const { return bits_; }

  // One byte an element, 0 or 1, of the elements [begin, begin + out.size()).
  void Unpack(int64_t begin, absl::Span<uint8_t> out) const;

  friend bool operator==(const Mask& a, const Mask& b);

 private:
  Mask(Buffer bits, int64_t elements);

  Buffer bits_;
  int64_t elements_ = 0;
  int64_t pruned_ = 0;
};

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_TENSORS_MASK_H_
