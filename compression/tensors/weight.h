// A weight on its way to an algorithm, with what is known about it already.
#ifndef NNI_COMPRESSION_COMPRESSION_TENSORS_WEIGHT_H_
#define NNI_COMPRESSION_COMPRESSION_TENSORS_WEIGHT_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <tuple>
#include <utility>

#include "compression/types/dtype.h"
#include "compression/types/quantization.h"

namespace nni_compression::compression {

// Statistics of a weight's bytes, cached with them to speed up later calls. Thread-safe.
class WeightStatistics {
 public:
  // `admit` is called, on any thread, before `bytes` of memory in addition to the object are held;
  // statistics that it refuses are not kept. Null: no limit.
  using Admit = std::function<bool(int64_t bytes)>;
  explicit WeightStatistics(Admit admit = nullptr) : admit_(std::move(admit)) {}

  // The granularity of ranges: channels along an axis, groups of weights in them, or the whole
  // tensor.
  struct Granularity {
    std::optional<int> axis;
    int64_t group_size = 0;

    friend bool operator<(const Granularity& a, const Granularity& b) {
      return std::tie(a.axis, a.group_size) < std::tie(b.axis, b.group_size);
    }
  };

  // The ranges, if they have been set.
  std::optional<Range> range(const Granularity& granularity) const;
  void SetRange(const Granularity& granularity, const Range& range);

 private:
  bool Admitted(int64_t bytes) const { return admit_ == nullptr || admit_(bytes); }

  const Admit admit_;
  mutable std::mutex mutex_;
  std::map<Granularity, Range> ranges_;
};

// Checked by the session: bound dtype and shape, contiguous, on the CPU. `values` may alias memory
// that is valid during the call only. `statistics`, those of these values, may be null.
struct Weight {
  Weight(at::Tensor values, WeightStatistics* statistics = nullptr)  // NOLINT: a tensor is a weight
      : values(std::move(values)), statistics(statistics) {}

  at::Tensor values;
  WeightStatistics* statistics;
};

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_TENSORS_WEIGHT_H_
