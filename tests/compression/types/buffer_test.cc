#include "compression/types/buffer.h"

#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

TEST(BufferTest, AViewReachesNeitherBeyondTheBufferNorShortOfItsEnd) {
  const Buffer buffer = Buffer::Allocate(24);
  EXPECT_NO_THROW(buffer.AsTensor(DataType::kFloat32, {6}));
  EXPECT_THROW(buffer.AsTensor(DataType::kFloat32, {7}), std::length_error);
  EXPECT_THROW(buffer.AsTensor(DataType::kFloat32, {5}), std::length_error);
  EXPECT_THROW(buffer.AsTensor(DataType::kFloat64, {6}), std::length_error);
  EXPECT_THROW(buffer.AsTensor(DataType::kFloat32, {}), std::length_error);
  EXPECT_THROW(buffer.AsTensor(DataType::kFloat32, {INT64_MAX, INT64_MAX}), std::length_error);
}

TEST(BufferTest, IsAlignedAndShownAsATensorThatKeepsItAlive) {
  at::Tensor tensor;
  {
    Buffer buffer = Buffer::Allocate(24);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
    EXPECT_EQ(buffer.size(), 24);
    tensor = buffer.AsTensor(DataType::kFloat32, {2, 3});
    tensor.fill_(7);
    EXPECT_EQ(reinterpret_cast<float*>(buffer.data())[5], 7.0f);
  }
  EXPECT_EQ(tensor.sum().item<float>(), 42.0f);
}

// Around the sizes where another allocator takes over.
TEST(BufferTest, IsAlignedAndWritableAtEverySize) {
  for (const int64_t size : {int64_t{0}, int64_t{1}, int64_t{63}, int64_t{64}, int64_t{1} << 20,
                             (int64_t{8} << 20) - 1, int64_t{8} << 20, (int64_t{10} << 20) + 1}) {
    const Buffer buffer = Buffer::Allocate(size);
    EXPECT_EQ(buffer.size(), size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u) << size;
    std::memset(buffer.data(), 0xa5, static_cast<size_t>(size));
    EXPECT_TRUE(size == 0 || buffer.data()[size - 1] == 0xa5);
  }
}

}  // namespace
}  // namespace nni_compression::compression
