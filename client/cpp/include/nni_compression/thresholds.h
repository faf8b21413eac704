// Masks from counts of magnitudes: the trainer keeps its weights, and sends histograms of them.
#ifndef NNI_COMPRESSION_THRESHOLDS_H_
#define NNI_COMPRESSION_THRESHOLDS_H_

#include <cstdint>
#include <functional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "nni_compression/types.h"

namespace nni_compression {

// The key of a weight is its magnitude as a number of as many bits as the weight has: its bits
// without the sign, shifted left by one. Of the weights that a layer's mask keeps, those with
// smaller keys than the threshold are pruned, and of those with that key the first `ties` in C
// order.
struct Threshold {
  uint64_t key = 0;
  int64_t ties = 0;
  int64_t pruned = 0;  // weights that the layer's mask then removes in all

  double target_sparsity = 0;
  int64_t epoch = 0;
};

// How many keys have these 16 bits.
struct DigitCount {
  uint16_t digit = 0;
  int64_t count = 0;
};

// A layer whose magnitudes are counted by the trainer, wherever they are. The counts of the shards
// of a weight are added up before they are returned.
struct CountedLayer {
  std::string name;  // as bound
  DataType dtype = DataType::kFloat32;
  std::vector<int64_t> shape;

  // Of the weights that the mask in force keeps and whose keys begin with the `known_bits` bits
  // `key`: how many have which next 16 bits, ascending, without those that none has. Called in the
  // thread of the call, for 0 known bits first. An error fails the layer.
  std::function<absl::StatusOr<std::vector<DigitCount>>(uint64_t key, int known_bits)> count;
};

// The decided threshold of a layer; or its mask, if another rank has sent its weight.
using ThresholdOrMask = std::variant<Threshold, Mask>;

// A CountedLayer of a weight in this process's memory, of a floating type. `mask`, in force, may be
// null. Both must stay as they are while the layer is used.
CountedLayer CountWeight(const Tensor& weight, const Mask* mask);

// The mask that a threshold makes of the weight that it was decided from. INTERNAL when it would
// not remove as many weights as the threshold says.
absl::StatusOr<Mask> MaskFromThreshold(const Tensor& weight, const Mask* mask,
                                       const Threshold& threshold);

}  // namespace nni_compression

#endif  // NNI_COMPRESSION_THRESHOLDS_H_
