// Segments that are computed.
#ifndef NNI_COMPRESSION_COMPRESSION_EXPORTERS_SEGMENTS_H_
#define NNI_COMPRESSION_COMPRESSION_EXPORTERS_SEGMENTS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "compression/exporters/exporter.h"

namespace nni_compression::compression {

// These bytes.
Segment BytesSegment(std::string bytes);

// A text in consecutive parts. Immutable; segments share it.
class Parts {
 public:
  explicit Parts(std::vector<std::string> parts);

  int64_t byte_length() const { return ends_.empty() ? 0 : ends_.back(); }
  void Fill(int64_t offset, absl::Span<uint8_t> out) const;

 private:
  const std::vector<std::string> parts_;
  std::vector<int64_t> ends_;
};

// A segment of the text, whose memory its creator counts once.
Segment PartsSegment(const std::shared_ptr<const Parts>& parts);

// `count` numbers of type T: number(i) is called when its bytes are produced.
template <class T, class F>
Segment NumbersSegment(int64_t count, F number) {
  constexpr int64_t kWidth = sizeof(T);
  Segment segment;
  segment.byte_length = count * kWidth;
  segment.fill = [number = std::move(number)](int64_t offset, absl::Span<uint8_t> out) {
    for (size_t at = 0; at < out.size();) {
      const auto byte = offset + static_cast<int64_t>(at);
      const auto value = static_cast<T>(number(byte / kWidth));
      const size_t size = std::min<size_t>(kWidth - byte % kWidth, out.size() - at);
      std::memcpy(out.data() + at, reinterpret_cast<const uint8_t*>(&value) + byte % kWidth, size);
      at += size;
    }
  };
  return segment;
}

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_EXPORTERS_SEGMENTS_H_
