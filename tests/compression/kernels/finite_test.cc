#include "compression/kernels/finite.h"

#include <cmath>
#include <limits>

#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

TEST(AllFiniteTest, AcceptsTheLargestNumbersOfEveryType) {
  EXPECT_TRUE(
      AllFinite(DataType::kFloat16, Values({65504, -65504}, DataType::kFloat16).data_ptr(), 2));
  EXPECT_TRUE(
      AllFinite(DataType::kFloat32, Values({std::numeric_limits<float>::max(), 0}).data_ptr(), 2));
  EXPECT_TRUE(
      AllFinite(DataType::kFloat64,
                Values({std::numeric_limits<double>::max(), 0}, DataType::kFloat64).data_ptr(), 2));
}

TEST(AllFiniteTest, SeesOneBadWeightAmongMany) {
  std::vector<double> values(10000, 1.0);
  values[9999] = std::nan("");
  EXPECT_FALSE(AllFinite(DataType::kFloat32, Values(values).data_ptr(), 10000));
  EXPECT_TRUE(AllFinite(DataType::kFloat32, Values(values).data_ptr(), 9999));
}

}  // namespace
}  // namespace nni_compression::compression
