#include "compression/kernels/gather.h"

#include <cstring>

#include "absl/numeric/bits.h"
#include "compression/kernels/words.h"

namespace nni_compression::compression {
namespace {

// T has the elements' size: as integers they move bit for bit.
template <class T>
void Gather(const uint8_t* mask, int64_t n, T* elements) {
  T* out = elements;
  for (int64_t i = 0; i < n; i += 64) {
    uint64_t kept = LoadWord(mask, i, n);
    if (kept == ~uint64_t{0}) {
      std::memmove(out, elements + i, 64 * sizeof(T));
      out += 64;
      continue;
    }
    for (; kept != 0; kept &= kept - 1) *out++ = elements[i + absl::countr_zero(kept)];
  }
}

}  // namespace

void GatherKept(const uint8_t* mask, int64_t elements, DataType dtype, void* weight) {
  switch (ByteLength(dtype, 1)) {
    case 2:
      return Gather(mask, elements, static_cast<uint16_t*>(weight));
    case 4:
      return Gather(mask, elements, static_cast<uint32_t*>(weight));
    default:
      return Gather(mask, elements, static_cast<uint64_t*>(weight));
  }
}

}  // namespace nni_compression::compression
