#include "compression/algorithms/weight_error.h"

#include <cmath>
#include <limits>

#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using testing::AllOf;
using testing::HasSubstr;

Layer LayerOf(const at::Tensor& weight, DataType dtype) {
  Layer layer = MakeLayer("conv1", {weight.numel()}, dtype);
  layer.elements = weight.numel();
  return layer;
}

TEST(NonFiniteErrorTest, NamesTheLayerTheFirstIndexAndTheValue) {
  const at::Tensor weight = Values({1, 2, -std::numeric_limits<double>::infinity(), std::nan("")});
  EXPECT_THAT(NonFiniteError(LayerOf(weight, DataType::kFloat32), weight.data_ptr()),
              IsInvalid(AllOf(HasSubstr("\"conv1\""), HasSubstr("element 2 is -inf"))));
}

TEST(NonFiniteErrorTest, NamesAFloat64ThatIsTooLargeForFloat32) {
  const at::Tensor weight = Values({1, 1e300}, DataType::kFloat64);
  EXPECT_THAT(NonFiniteError(LayerOf(weight, DataType::kFloat64), weight.data_ptr(), true),
              IsInvalid(HasSubstr("element 1 is 1e+300; it must be in the range of float32")));
}

}  // namespace
}  // namespace nni_compression::compression
