#include "compression/tensors/weight.h"

namespace nni_compression::compression {
namespace {

// Overhead: a map node or a reference count, and heap blocks.
constexpr int64_t kOverhead = 160;

int64_t BytesOf(const Range& range) {
  return kOverhead + static_cast<int64_t>(2 * range.minimum.size() * sizeof(float));
}

}  // namespace

std::optional<Range> WeightStatistics::range(const Granularity& granularity) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = ranges_.find(granularity);
  return found == ranges_.end() ? std::nullopt : std::make_optional(found->second);
}

void WeightStatistics::SetRange(const Granularity& granularity, const Range& range) {
  // Without the lock, since reserving may evict other weights.
  if (this->range(granularity) || !Admitted(BytesOf(range))) return;
  std::lock_guard<std::mutex> lock(mutex_);
  ranges_.emplace(granularity, range);
}

}  // namespace nni_compression::compression
