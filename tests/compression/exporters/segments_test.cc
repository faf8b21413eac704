#include "compression/exporters/segments.h"

#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using testing::HasSubstr;

std::string Produced(const Segment& segment, int64_t piece) {
  std::string bytes;
  for (int64_t offset = 0; offset < segment.byte_length; offset += piece) {
    std::string out(std::min(piece, segment.byte_length - offset), '\0');
    segment.fill(offset, absl::MakeSpan(reinterpret_cast<uint8_t*>(out.data()), out.size()));
    bytes += out;
  }
  return bytes;
}

TEST(SegmentsTest, PartsAreOneText) {
  const auto parts =
      std::make_shared<const Parts>(std::vector<std::string>{"", "ab", "", "", "c", "defgh", ""});
  for (int64_t piece : {1, 2, 3, 7, 8, 100}) {
    EXPECT_EQ(Produced(PartsSegment(parts), piece), "abcdefgh") << piece;
  }
  const auto nothing = std::make_shared<const Parts>(std::vector<std::string>{});
  EXPECT_EQ(PartsSegment(nothing).byte_length, 0);
}

TEST(SegmentsTest, NumbersAreAskedForWhenTheirBytesAre) {
  int asked = 0;
  const Segment segment = NumbersSegment<uint32_t>(1'000'000'000, [&](int64_t i) {
    ++asked;
    return static_cast<uint32_t>(i);
  });
  EXPECT_EQ(segment.byte_length, 4'000'000'000);
  uint8_t out[9];
  segment.fill(3'999'999'989, absl::MakeSpan(out));
  // Of the numbers 999'999'997 to 999'999'999, but for the first byte and the last two.
  EXPECT_EQ(std::string(out, out + 9), "\xc9\x9a\x3b\xfe\xc9\x9a\x3b\xff\xc9");
  EXPECT_EQ(asked, 3);
}

TEST(SegmentsTest, ATensorFillsItsPlaceExactly) {
  Segment segment;
  segment.tensor = 0;
  segment.byte_length = 8;
  Buffer bytes = Buffer::Allocate(8);
  EXPECT_THAT(segment.Apply(bytes), IsOk());
  for (int64_t size : {0, 7, 9}) {
    segment.transform = [size](Buffer& bytes) {
      bytes = Buffer::Allocate(size);
      return absl::OkStatus();
    };
    EXPECT_THAT(segment.Apply(bytes),
                Fails(absl::StatusCode::kInternal, HasSubstr("bytes of the file; it must be 8")));
  }
}

TEST(SegmentsTest, AFileKnowsItsLengthAndItsMemory) {
  ExportFile file("name", "type");
  file.Add(BytesSegment(std::string(1000, 'x')));
  file.Add(NumbersSegment<float>(10, [](int64_t) { return 1.0f; }));
  EXPECT_EQ(file.byte_length(), 1040);
  EXPECT_GE(file.memory(), 1000);
  ExportPlan plan;
  plan.memory = 5;
  plan.files = {file, file};
  EXPECT_EQ(plan.memory_needed(), 5 + 2 * file.memory());
}

}  // namespace
}  // namespace nni_compression::compression
