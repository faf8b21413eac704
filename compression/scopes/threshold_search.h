// The thresholds of layers of which only counts of magnitudes are known.
#ifndef NNI_COMPRESSION_COMPRESSION_SCOPES_THRESHOLD_SEARCH_H_
#define NNI_COMPRESSION_COMPRESSION_SCOPES_THRESHOLD_SEARCH_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "compression/tensors/threshold.h"
#include "compression/types/dtype.h"

namespace nni_compression::compression {

// A layer whose weights were counted elsewhere.
struct CountedLayer {
  DataType dtype = DataType::kFloat32;  // of the weight
  int64_t elements = 0;                 // at least 1
  int64_t previously_pruned = 0;        // not counted any more, and ranked first

  // The result is in [at_least, at_most], which are in [previously_pruned, elements].
  int64_t at_least = 0;
  int64_t at_most = 0;
};

// How many kept weights of a layer have which 16 bits after the given upper bits of their keys.
struct CountsRound {
  uint64_t prefix = 0;

  struct Digit {
    uint16_t digit = 0;
    int64_t count = 0;  // at least 1
  };
  std::vector<Digit> digits;  // ascending
};

// Finds how many weights each layer loses so that they are `total` together, or as near as the
// limits allow: the smallest magnitudes, ties by the order of layers, then by index, as
// CountGlobally with kNone does. All layers have one dtype. Each round makes 16 more bits of the
// thresholds known.
class ThresholdSearch {
 public:
  ThresholdSearch(const std::vector<CountedLayer>& layers, int64_t total);

  // The rounds that weights of this dtype take.
  static int Rounds(DataType dtype);

  bool done() const { return rounds_left_ == 0; }

  // The layer's threshold as far as it is known.
  const Threshold& threshold(size_t layer) const { return layers_[layer].threshold; }

  // INVALID_ARGUMENT when this cannot be the layer's next round, whose prefix is its threshold's
  // key: it does not add up to the weights that it has to count, or counts some that are not
  // finite.
  absl::Status Check(size_t layer, const CountsRound& round) const;

  // The next round of all layers, in their order; each passed Check. Not once done().
  void Count(std::vector<CountsRound> rounds);

 private:
  struct Layer {
    CountedLayer given;
    Threshold threshold;
    int64_t below = 0;   // weights with smaller keys than all that begin with threshold.key
    int64_t inside = 0;  // kept weights with keys that do
    // How many it loses, if a limit decides that; until then all such layers have one threshold.
    std::optional<int64_t> fixed;

    int64_t Limited(int64_t count) const;
  };

  // Sets ties and pruned of all layers.
  void Decide();

  std::vector<Layer> layers_;
  int64_t total_ = 0;
  int rounds_left_ = 0;
};

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_SCOPES_THRESHOLD_SEARCH_H_
