// A weight on its way to an algorithm, with what is known about it already.
#ifndef NNI_COMPRESSION_COMPRESSION_TENSORS_WEIGHT_H_
#define NNI_COMPRESSION_COMPRESSION_TENSORS_WEIGHT_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <tuple>
#include <utility>

#include "compression/kernels/select.h"
#include "compression/types/dtype.h"
#include "compression/types/quantization.h"

namespace nni_compression::compression {

// What follows from a weight's bytes alone, kept with them so that the next question about them
// costs less. Thread-safe.
class WeightStatistics {
 public:
  // `admit` is asked before more than the object itself is held, with the bytes, and on any thread;
  // what it refuses is not kept. Null: all is.
  using Admit = std::function<bool(int64_t bytes)>;
  explicit WeightStatistics(Admit admit = nullptr) : admit_(std::move(admit)) {}

  // Computes what takes a pass of its own; half a second for a billion weights. Nothing for a
  // weight that is not finite.
  void Prepare(DataType dtype, const void* weight, int64_t elements);

  // Null before Prepare.
  std::shared_ptr<const MagnitudeHistogram> magnitudes() const;

  // What of a weight has a range of its own: channels along an axis, or groups of so many weights
  // in them; or the whole tensor.
  struct Granularity {
    std::optional<int> axis;
    int64_t group_size = 0;

    friend bool operator<(const Granularity& a, const Granularity& b) {
      return std::tie(a.axis, a.group_size) < std::tie(b.axis, b.group_size);
    }
  };

  // The ranges, when someone has set them.
  std::optional<Range> range(const Granularity& granularity) const;
  void SetRange(const Granularity& granularity, const Range& range);

 private:
  bool Admitted(int64_t bytes) const { return admit_ == nullptr || admit_(bytes); }

  const Admit admit_;
  mutable std::mutex mutex_;
  std::shared_ptr<const MagnitudeHistogram> magnitudes_;
  std::map<Granularity, Range> ranges_;
};

// Checked by the session: of the bound dtype and shape, contiguous, on the CPU. `values` may alias
// memory that dies with the call. `statistics`, of these very values, may be null.
struct Weight {
  Weight(at::Tensor values, WeightStatistics* statistics = nullptr)  // NOLINT: a tensor is a weight
      : values(std::move(values)), statistics(statistics) {}

  at::Tensor values;
  WeightStatistics* statistics;
};

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_TENSORS_WEIGHT_H_
