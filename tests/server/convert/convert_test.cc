#include "server/convert/convert.h"

#include <gtest/gtest.h>

namespace nni_compression::server {
namespace {

namespace v1 = ::nni::compression::v1;

TEST(ConvertDataTypeTest, EveryTypeOfTheWireHasItsNumberInTheLibrary) {
  for (int number = v1::DATA_TYPE_FLOAT32; number <= v1::DATA_TYPE_BIT; ++number) {
    const auto on_wire = static_cast<v1::DataType>(number);
    const auto dtype = ToDataType(on_wire, "dtype");
    ASSERT_TRUE(dtype.ok()) << dtype.status();
    EXPECT_EQ(static_cast<int>(*dtype), number);
    EXPECT_EQ(ToProto(*dtype), on_wire);
  }
}

TEST(ConvertDataTypeTest, NamesTheRangeForAnotherNumber) {
  EXPECT_EQ(ToDataType(v1::DATA_TYPE_UNSPECIFIED, "dtype").status().message(),
            "dtype is 0; it must be in [1, 12]");
  EXPECT_FALSE(ToDataType(static_cast<v1::DataType>(13), "dtype").ok());
}

}  // namespace
}  // namespace nni_compression::server
