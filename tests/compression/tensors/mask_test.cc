#include "compression/tensors/mask.h"

#include <cstring>

#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using testing::HasSubstr;

Buffer BytesBuffer(std::vector<uint8_t> bytes) {
  Buffer buffer = Buffer::Allocate(static_cast<int64_t>(bytes.size()));
  std::memcpy(buffer.data(), bytes.data(), bytes.size());
  return buffer;
}

TEST(MaskTest, OnesKeepsEverythingAndLeavesTheBitsAfterTheLastElementZero) {
  for (int64_t n : {1, 7, 8, 9, 64, 65, 1000}) {
    const Mask mask = Mask::Ones(n);
    EXPECT_EQ(mask.elements(), n);
    EXPECT_EQ(mask.pruned(), 0);
    EXPECT_EQ(mask.sparsity(), 0.0);
    EXPECT_EQ(Bits(mask), std::string(n, '1'));
    EXPECT_TRUE(Mask::FromBits(mask.bits(), n).ok());
  }
}

TEST(MaskTest, ReadsBitZeroOfByteZeroAsElementZero) {
  const Mask mask = Mask::FromBits(BytesBuffer({0b00000101, 0b1}), 9).value();
  EXPECT_EQ(Bits(mask), "101000001");
  EXPECT_EQ(mask.pruned(), 6);
  EXPECT_DOUBLE_EQ(mask.sparsity(), 6.0 / 9.0);
}

TEST(MaskTest, RefusesBitsAfterTheLastElementAndWrongSizes) {
  EXPECT_THAT(Mask::FromBits(BytesBuffer({0, 0b10}), 9),
              IsInvalid(HasSubstr("a bit set after its last element 8")));
  EXPECT_THAT(Mask::FromBits(BytesBuffer({0}), 9),
              IsInvalid("mask has 1 bytes; it must have 2 for 9 elements"));
  EXPECT_THAT(Mask::FromBits(BytesBuffer({0, 0, 0}), 9), IsInvalid(HasSubstr("3 bytes")));
}

TEST(MaskTest, UnpacksAnyStretchToBytes) {
  const std::string bits = "110100101110101001011";
  const Mask mask = MaskOf(bits);
  for (size_t begin = 0; begin < bits.size(); ++begin) {
    std::vector<uint8_t> out(bits.size() - begin);
    mask.Unpack(static_cast<int64_t>(begin), absl::MakeSpan(out));
    for (size_t i = 0; i < out.size(); ++i) EXPECT_EQ(out[i], bits[begin + i] - '0');
  }
}

TEST(MaskTest, ComparesElements) {
  EXPECT_TRUE(MaskOf("0110") == MaskOf("0110"));
  EXPECT_FALSE(MaskOf("0110") == MaskOf("0111"));
  EXPECT_FALSE(MaskOf("0110") == MaskOf("01100"));
}

}  // namespace
}  // namespace nni_compression::compression
