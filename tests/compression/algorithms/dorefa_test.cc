#include <cmath>
#include <limits>

#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<float> ValuesOf(const QuantizedWeight& result) {
  const auto* values = reinterpret_cast<const float*>(result.data.data());
  return std::vector<float>(values, values + result.data.size() / 4);
}

TEST(DoReFaQuantizerTest, ComputesTheExample) {
  auto session = BindOne("dorefa", {{"quant_bits", 8}}, {5});
  auto result = session->QuantizeWeight(0, Values({-1, -0.5, 0, 0.5, 1}), QuantizeReply::kValues);
  ASSERT_THAT(result, IsOk());
  const std::vector<float> expected = {-1, -0.60784316f, 0.00392163f, 0.60784316f, 1};
  const std::vector<float> values = ValuesOf(*result);
  for (int i = 0; i < 5; ++i) EXPECT_NEAR(values[i], expected[i], 1e-6);
}

TEST(DoReFaQuantizerTest, AgreesWithThePaperToOneCode) {
  for (int bits = 1; bits <= 16; ++bits) {
    const double levels = std::pow(2.0, bits) - 1;
    const at::Tensor weight = Random({500}, bits, DataType::kFloat32, 0.5);
    const auto* w = static_cast<const float*>(weight.data_ptr());
    double max = 0;
    for (int i = 0; i < 500; ++i) max = std::max(max, std::tanh(std::fabs(double{w[i]})));
    auto session = BindOne("dorefa", {{"quant_bits", bits}}, {500});
    auto result = session->QuantizeWeight(0, weight, QuantizeReply::kCodes);
    ASSERT_THAT(result, IsOk());
    EXPECT_EQ(result->dtype, bits <= 8 ? DataType::kUInt8 : DataType::kUInt16);
    EXPECT_EQ(result->parameters->formula, Formula::kDoReFa);
    const std::vector<float> values =
        ValuesOf(*session->QuantizeWeight(0, weight, QuantizeReply::kValues));
    int exact = 0;
    for (int i = 0; i < 500; ++i) {
      const double expected = std::nearbyint((std::tanh(double{w[i]}) / (2 * max) + 0.5) * levels);
      const int code = bits <= 8 ? result->data.data()[i]
                                 : reinterpret_cast<const uint16_t*>(result->data.data())[i];
      ASSERT_NEAR(code, expected, 1.0);
      ASSERT_NEAR(values[i], 2 * code / levels - 1, 1e-6);
      exact += code == expected;
    }
    EXPECT_GE(exact, 490) << bits << " bits";
  }
}

TEST(DoReFaQuantizerTest, ReachesBothEndsAndNoFurther) {
  auto session = BindOne("dorefa", {{"quant_bits", 2}}, {4});
  auto result =
      session->QuantizeWeight(0, Values({-100, 100, 3e38, -1e-30}), QuantizeReply::kCodes);
  const uint8_t* codes = result->data.data();
  EXPECT_THAT(std::vector<int>(codes, codes + 4), ElementsAre(0, 3, 3, 2));
}

TEST(DoReFaQuantizerTest, OneBitMeansMinusOneOrOne) {
  auto session = BindOne("dorefa", {{"quant_bits", 1}}, {3});
  EXPECT_THAT(ValuesOf(*session->QuantizeWeight(0, Values({-0.2, 0.3, 1}), QuantizeReply::kValues)),
              ElementsAre(-1.0f, 1.0f, 1.0f));
}

TEST(DoReFaQuantizerTest, AllZerosStayZeros) {
  auto session = BindOne("dorefa", {{"quant_bits", 4}}, {3});
  const at::Tensor zeros = Values({0, -0.0, 0});
  auto values = session->QuantizeWeight(0, zeros, QuantizeReply::kValues);
  ASSERT_THAT(values, IsOk());
  EXPECT_THAT(ValuesOf(*values), ElementsAre(0.0f, 0.0f, 0.0f));
  auto codes = session->QuantizeWeight(0, zeros, QuantizeReply::kCodes);
  EXPECT_EQ(codes->parameters->formula, Formula::kAffine);
  EXPECT_THAT(codes->parameters->scale, ElementsAre(1.0f));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(codes->data.data()[i], 0);
}

TEST(DoReFaQuantizerTest, TinyWeightsAreNotZeros) {
  auto session = BindOne("dorefa", {{"quant_bits", 8}}, {2});
  const double tiny = std::numeric_limits<float>::denorm_min();
  EXPECT_THAT(ValuesOf(*session->QuantizeWeight(0, Values({tiny, -tiny}), QuantizeReply::kValues)),
              ElementsAre(1.0f, -1.0f));
}

TEST(DoReFaQuantizerTest, RefusesBitsOutOfRange) {
  for (int bits : {0, 17, 33}) {
    EXPECT_THAT(TryBind(MakeBinding("dorefa", {{{"quant_bits", bits}}}, {MakeLayer("a", {1})})),
                IsInvalid(HasSubstr("must be in [1, 16]")));
  }
}

}  // namespace
}  // namespace nni_compression::compression
