#include "compression/weight.h"

#include "compression/kernels/select.h"

namespace nni_compression::compression {

void WeightStatistics::Prepare(DataType dtype, const void* weight, int64_t elements) {
  std::optional<MagnitudeHistogram> histogram = CountMagnitudes(dtype, weight, elements);
  if (!histogram) return;
  auto shared = std::make_shared<const MagnitudeHistogram>(*std::move(histogram));
  std::lock_guard<std::mutex> lock(mutex_);
  magnitudes_ = std::move(shared);
}

std::shared_ptr<const MagnitudeHistogram> WeightStatistics::magnitudes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return magnitudes_;
}

std::optional<Range> WeightStatistics::range(const Granularity& granularity) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = ranges_.find(granularity);
  return found == ranges_.end() ? std::nullopt : std::make_optional(found->second);
}

void WeightStatistics::SetRange(const Granularity& granularity, const Range& range) {
  std::lock_guard<std::mutex> lock(mutex_);
  ranges_[granularity] = range;
}

int64_t WeightStatistics::bytes() const {
  std::lock_guard<std::mutex> lock(mutex_);
  auto bytes = static_cast<int64_t>(sizeof *this);
  if (magnitudes_ != nullptr) {
    bytes += static_cast<int64_t>(magnitudes_->counts.size() * sizeof(int64_t));
  }
  for (const auto& entry : ranges_) {
    bytes += static_cast<int64_t>(2 * entry.second.minimum.size() * sizeof(float));
  }
  return bytes;
}

}  // namespace nni_compression::compression
