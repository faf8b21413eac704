#include "compression/exporters/segments.h"

namespace nni_compression::compression {

Segment BytesSegment(std::string bytes) {
  Segment segment;
  segment.byte_length = static_cast<int64_t>(bytes.size());
  segment.memory = segment.byte_length;
  segment.fill = [owned = std::make_shared<const std::string>(std::move(bytes))](
                     int64_t offset, absl::Span<uint8_t> out) {
    std::memcpy(out.data(), owned->data() + offset, out.size());
  };
  return segment;
}

Parts::Parts(std::vector<std::string> parts) : parts_(std::move(parts)) {
  ends_.reserve(parts_.size());
  int64_t end = 0;
  for (const std::string& part : parts_) {
    end += static_cast<int64_t>(part.size());
    ends_.push_back(end);
  }
}

void Parts::Fill(int64_t offset, absl::Span<uint8_t> out) const {
  auto p =
      static_cast<size_t>(std::upper_bound(ends_.begin(), ends_.end(), offset) - ends_.begin());
  for (size_t at = 0; at < out.size(); ++p) {
    const std::string& part = parts_[p];
    const auto from =
        static_cast<size_t>(offset + static_cast<int64_t>(at + part.size()) - ends_[p]);
    const size_t size = std::min(part.size() - from, out.size() - at);
    std::memcpy(out.data() + at, part.data() + from, size);
    at += size;
  }
}

Segment PartsSegment(const std::shared_ptr<const Parts>& parts) {
  Segment segment;
  segment.byte_length = parts->byte_length();
  segment.fill = [parts](int64_t offset, absl::Span<uint8_t> out) { parts->Fill(offset, out); };
  return segment;
}

}  // namespace nni_compression::compression
