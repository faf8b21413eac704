// What a mask is made from where the weights are, if they were only counted here.
#ifndef NNI_COMPRESSION_COMPRESSION_TENSORS_THRESHOLD_H_
#define NNI_COMPRESSION_COMPRESSION_TENSORS_THRESHOLD_H_

#include <cstdint>
#include <tuple>

namespace nni_compression::compression {

// A key is a weight's magnitude as a number of as many bits as the weight has: its bits without the
// sign, shifted left by one. Of the weights that a layer's mask keeps, those with smaller keys than
// the threshold are pruned, and of those with that key the first ones in C order.
struct Threshold {
  int known_bits = 0;  // upper bits of the key that are known, a multiple of 16; all: decided
  uint64_t key = 0;    // these bits, as a number

  // Once decided: pruned weights with this key, and all that the layer's mask then removes.
  int64_t ties = 0;
  int64_t pruned = 0;

  friend bool operator==(const Threshold& a, const Threshold& b) {
    return std::tie(a.known_bits, a.key, a.ties, a.pruned) ==
           std::tie(b.known_bits, b.key, b.ties, b.pruned);
  }
};

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_TENSORS_THRESHOLD_H_
