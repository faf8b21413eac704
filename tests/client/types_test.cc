#include "nni_compression/types.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "compression/types/element_types.h"
#include "nni/compression/v1/compression.pb.h"

namespace nni_compression {
namespace {

using ::testing::ElementsAre;

template <typename T>
Bytes BytesOf(const std::vector<T>& values) {
  Bytes bytes = Bytes::Uninitialized(static_cast<int64_t>(values.size() * sizeof(T)));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

TEST(MaskTest, CountsAndReadsItsBits) {
  const Mask mask("conv", {3, 5}, BytesOf<uint8_t>({0b10000001, 0b01000000}), 0.8, 4);
  EXPECT_EQ(mask.elements(), 15);
  EXPECT_EQ(mask.pruned(), 12);
  EXPECT_DOUBLE_EQ(mask.sparsity(), 0.8);
  EXPECT_TRUE(mask.kept(0));
  EXPECT_FALSE(mask.kept(1));
  EXPECT_TRUE(mask.kept(7));
  EXPECT_TRUE(mask.kept(14));
}

TEST(MaskTest, CountsLongMasks) {
  const Mask mask("fc", {1000}, BytesOf(std::vector<uint8_t>(125, 0x0f)), 0.5, 0);
  EXPECT_EQ(mask.pruned(), 500);
}

TEST(ByteLengthTest, RoundsBitsUpAndChecksShapes) {
  const std::vector<int64_t> shape = {3, 5};
  EXPECT_EQ(*ByteLength(DataType::kBit, shape), 2);
  EXPECT_EQ(*ByteLength(DataType::kBFloat16, shape), 30);
  EXPECT_EQ(*ByteLength(DataType::kFloat64, shape), 120);
  const std::vector<int64_t> huge = {int64_t{1} << 47, 2};
  EXPECT_FALSE(ByteLength(DataType::kUInt8, huge).ok());
  const std::vector<int64_t> deep(65, 1);
  EXPECT_FALSE(ByteLength(DataType::kUInt8, deep).ok());
  const std::vector<int64_t> negative = {-1};
  EXPECT_FALSE(ByteLength(DataType::kUInt8, negative).ok());
}

TEST(ElementTypesTest, EveryTypeOfTheWireHasItsNameAndOfEachNameThereIsOne) {
  const auto& wire = *::nni::compression::v1::DataType_descriptor();
  int types = 0;
  for (int i = 0; i < wire.value_count(); ++i) {
    if (wire.value(i)->number() == 0) continue;
    const auto dtype = static_cast<DataType>(wire.value(i)->number());
    const std::string name = absl::AsciiStrToLower(wire.value(i)->name());
    EXPECT_EQ(absl::StrCat("data_type_", DataTypeName(dtype)), name);
    ++types;
  }
  std::set<absl::string_view> names;
  std::set<absl::string_view> safetensors_names;
  for (const ElementType& type : kElementTypes) {
    if (WireNumber(type) != 0) --types;
    EXPECT_TRUE(names.insert(type.name).second) << type.name;
    EXPECT_TRUE(safetensors_names.insert(type.safetensors).second) << type.name;
    EXPECT_GT(type.bits, 0) << type.name;
  }
  EXPECT_EQ(types, 0);
  EXPECT_EQ(DataTypeName(static_cast<DataType>(0)), "unspecified");
  EXPECT_EQ(DataTypeName(static_cast<DataType>(1000)), "unknown");
}

TEST(MakeTensorTest, KnowsItsElementType) {
  const std::vector<float> floats = {1, 2};
  const Tensor tensor = MakeTensor<float>("a", {2}, floats);
  EXPECT_EQ(tensor.dtype, DataType::kFloat32);
  EXPECT_EQ(tensor.bytes.size(), 8u);
  const std::vector<int64_t> longs = {1};
  EXPECT_EQ(MakeTensor<int64_t>("a", {1}, longs).dtype, DataType::kInt64);
  EXPECT_EQ(DataTypeName(DataType::kBit), "bit");
}

TEST(QuantizedTensorTest, DequantizesPerTensor) {
  QuantizedTensor tensor;
  tensor.shape = {3};
  tensor.content = QuantizeReply::kCodes;
  tensor.dtype = DataType::kUInt8;
  tensor.data = BytesOf<uint8_t>({0, 42, 255});
  tensor.parameters.scale = {0.5f};
  tensor.parameters.zero_point = {42};
  EXPECT_THAT(*tensor.Dequantize(), ElementsAre(-21.0f, 0.0f, 106.5f));
}

TEST(QuantizedTensorTest, AValueThatOverflowsIsTheLargestNumber) {
  QuantizedTensor tensor;
  tensor.shape = {3};
  tensor.content = QuantizeReply::kCodes;
  tensor.dtype = DataType::kUInt8;
  tensor.data = BytesOf<uint8_t>({0, 1, 3});
  tensor.parameters.scale = {2.5e38f};
  tensor.parameters.zero_point = {1};
  constexpr float kLargest = std::numeric_limits<float>::max();
  EXPECT_THAT(*tensor.Dequantize(), ElementsAre(-2.5e38f, 0.0f, kLargest));
  tensor.data = BytesOf<uint8_t>({3, 2, 0});
  tensor.parameters.zero_point = {3};
  EXPECT_THAT(*tensor.Dequantize(), ElementsAre(0.0f, -2.5e38f, -kLargest));
}

TEST(QuantizedTensorTest, DequantizesPerChannelAlongAnyAxis) {
  QuantizedTensor tensor;
  tensor.shape = {2, 3, 1};
  tensor.content = QuantizeReply::kCodes;
  tensor.dtype = DataType::kInt16;
  tensor.data = BytesOf<int16_t>({1, 1, 1, 2, 2, 2});
  tensor.parameters.scale = {1, 10, 100};
  tensor.parameters.zero_point = {0, 0, 1};
  tensor.parameters.channel_axis = 1;
  EXPECT_THAT(*tensor.Dequantize(), ElementsAre(1, 10, 0, 2, 20, 100));
}

TEST(QuantizedTensorTest, DequantizesGroups) {
  QuantizedTensor tensor;
  tensor.shape = {2, 2, 2};
  tensor.content = QuantizeReply::kCodes;
  tensor.dtype = DataType::kInt8;
  tensor.data = BytesOf<int8_t>({1, 2, 3, 4, 5, 6, 7, 8});
  tensor.parameters.scale = {1, 10, 100, 1000};
  tensor.parameters.zero_point = {0, 0, 1, 0};
  tensor.parameters.channel_axis = 0;
  tensor.parameters.group_size = 2;
  EXPECT_THAT(*tensor.Dequantize(), ElementsAre(1, 2, 30, 40, 400, 500, 7000, 8000));
}

TEST(QuantizedTensorTest, DequantizesDoReFa) {
  QuantizedTensor tensor;
  tensor.shape = {3};
  tensor.content = QuantizeReply::kCodes;
  tensor.dtype = DataType::kUInt8;
  tensor.data = BytesOf<uint8_t>({0, 128, 255});
  tensor.parameters.formula = Formula::kDoReFa;
  tensor.parameters.bits = 8;
  EXPECT_THAT(*tensor.Dequantize(), ElementsAre(-1.0f, 2.0f * 128 / 255 - 1, 1.0f));
}

TEST(QuantizedTensorTest, HasNoValuesWithoutCodes) {
  QuantizedTensor tensor;
  tensor.unquantized = true;
  EXPECT_EQ(tensor.Dequantize().status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(AllOrErrorTest, GivesTheFirstError) {
  std::vector<absl::StatusOr<int>> results = {1, absl::NotFoundError("x"),
                                              absl::InternalError("y")};
  EXPECT_EQ(AllOrError(results).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(*AllOrError<int>({1, 2}), ElementsAre(1, 2));
}

}  // namespace
}  // namespace nni_compression
