#include "compression/types/dtype.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using testing::HasSubstr;

TEST(CountElementsTest, MultipliesTheDimensions) {
  EXPECT_EQ(CountElements({2, 3, 4}).value(), 24);
  EXPECT_EQ(CountElements({1}).value(), 1);
  EXPECT_EQ(CountElements(std::vector<int64_t>(64, 1)).value(), 1);
  EXPECT_EQ(CountElements({(int64_t{1} << 48) - 1}).value(), (int64_t{1} << 48) - 1);
}

TEST(CountElementsTest, RefusesZeroAndNegativeDimensions) {
  EXPECT_THAT(CountElements({3, 0}), IsInvalid("shape[1] is 0; it must be at least 1"));
  EXPECT_THAT(CountElements({-2, 4}), IsInvalid("shape[0] is -2; it must be at least 1"));
}

TEST(CountElementsTest, RefusesNoDimensionsAndSixtyFive) {
  EXPECT_THAT(CountElements({}), IsInvalid(HasSubstr("has 0 dimensions; it must have 1 to 64")));
  EXPECT_THAT(CountElements(std::vector<int64_t>(65, 1)), IsInvalid(HasSubstr("65 dimensions")));
}

TEST(CountElementsTest, RefusesProductsThatAreTooLargeOrOverflow) {
  EXPECT_THAT(CountElements({int64_t{1} << 24, int64_t{1} << 24}),
              IsInvalid(HasSubstr("fewer than 2^48 elements")));
  EXPECT_THAT(CountElements({INT64_MAX, INT64_MAX, INT64_MAX}),
              IsInvalid(HasSubstr("fewer than 2^48 elements")));
  EXPECT_THAT(CountElements({int64_t{1} << 32, int64_t{1} << 32, 16}),
              IsInvalid(HasSubstr("fewer than 2^48 elements")));
}

TEST(DataTypesTest, SayOfEachTypeWhatOtherSoftwareCallsIt) {
  std::vector<std::string> table;
  for (const DataType dtype : DataTypes()) {
    const ElementType& type = ElementTypeOf(dtype);
    EXPECT_EQ(WireNumber(type), static_cast<int>(dtype)) << type.name;
    table.push_back(absl::StrCat(type.name, " ", type.safetensors, " ", type.bits));
  }
  EXPECT_THAT(table, testing::ElementsAre("float32 F32 32", "float16 F16 16", "bfloat16 BF16 16",
                                          "float64 F64 64", "uint8 U8 8", "int8 I8 8",
                                          "uint16 U16 16", "int16 I16 16", "int32 I32 32",
                                          "int64 I64 64", "bool BOOL 8", "bit  1"));
}

TEST(DataTypesTest, KnowNothingOfANumberThatIsNoType) {
  EXPECT_EQ(DataTypeName(static_cast<DataType>(0)), "unknown");
  EXPECT_EQ(DataTypeName(static_cast<DataType>(200)), "unknown");
  EXPECT_FALSE(IsWeightType(static_cast<DataType>(200)));
}

TEST(IsWeightTypeTest, IsAboutFloatingPoint) {
  for (const DataType type : DataTypes()) {
    const absl::string_view name = DataTypeName(type);
    EXPECT_EQ(IsWeightType(type), absl::StrContains(name, "float")) << name;
  }
}

TEST(ByteLengthTest, CountsBytesAndRoundsBitsUp) {
  EXPECT_EQ(ByteLength(DataType::kFloat32, 3), 12);
  EXPECT_EQ(ByteLength(DataType::kBFloat16, 3), 6);
  EXPECT_EQ(ByteLength(DataType::kFloat64, 3), 24);
  EXPECT_EQ(ByteLength(DataType::kBool, 3), 3);
  EXPECT_EQ(ByteLength(DataType::kBit, 8), 1);
  EXPECT_EQ(ByteLength(DataType::kBit, 9), 2);
}

TEST(ToScalarTypeTest, KnowsAllButTheTypesThatLibTorchLacks) {
  for (int i = 1; i <= 12; ++i) {
    const auto dtype = static_cast<DataType>(i);
    const bool lacking = dtype == DataType::kUInt16 || dtype == DataType::kBit;
    EXPECT_EQ(ToScalarType(dtype).ok(), !lacking) << DataTypeName(dtype);
  }
}

}  // namespace
}  // namespace nni_compression::compression
