#include <cmath>
#include <cstring>

#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

std::vector<int> Codes(const QuantizedWeight& result) {
  EXPECT_EQ(result.dtype, DataType::kInt8);
  const auto* codes = reinterpret_cast<const int8_t*>(result.data.data());
  return std::vector<int>(codes, codes + result.data.size());
}

TEST(NaiveQuantizerTest, TruncatesTowardsZero) {
  auto session = BindOne("naive", json::object(), {5});
  auto result =
      session->QuantizeWeight(0, Values({127, -127, 1.9, -1.9, 0}), QuantizeReply::kCodes);
  ASSERT_THAT(result, IsOk());
  EXPECT_THAT(Codes(*result), ElementsAre(127, -127, 1, -1, 0));
  EXPECT_THAT(result->parameters->scale, ElementsAre(1.0f));
  EXPECT_THAT(result->parameters->zero_point, ElementsAre(0));
  EXPECT_EQ(result->parameters->bits, 8);
}

TEST(NaiveQuantizerTest, AgreesWithThePlainFormulaBitForBit) {
  for (int seed = 0; seed < 20; ++seed) {
    const int64_t n = 1 + 37 * seed;
    const at::Tensor weight = Random({n}, seed, DataType::kFloat32, std::pow(10.0, seed - 10));
    const auto* w = static_cast<const float*>(weight.data_ptr());
    float max = 0;
    for (int64_t i = 0; i < n; ++i) max = std::max(max, std::fabs(w[i]));
    const float scale = max / 127.0f;
    auto session = BindOne("naive", json::object(), {n});
    const auto codes = Codes(*session->QuantizeWeight(0, weight, QuantizeReply::kCodes));
    auto values = session->QuantizeWeight(0, weight, QuantizeReply::kValues);
    const auto* value = reinterpret_cast<const float*>(values->data.data());
    for (int64_t i = 0; i < n; ++i) {
      const float code = std::min(127.0f, std::max(-127.0f, std::trunc(w[i] / scale)));
      ASSERT_EQ(codes[i], static_cast<int>(code));
      ASSERT_EQ(value[i], code * scale);
    }
  }
}

TEST(NaiveQuantizerTest, TheScaleOnlyGrows) {
  auto session = BindOne("naive", json::object(), {2});
  const auto scale = [&](double w) {
    return session->QuantizeWeight(0, Values({w, 0}), QuantizeReply::kParameters)
        ->parameters->scale[0];
  };
  EXPECT_EQ(scale(127), 1.0f);
  EXPECT_EQ(scale(254), 2.0f);
  EXPECT_EQ(scale(127), 2.0f);
  const auto codes = Codes(*session->QuantizeWeight(0, Values({127, 3}), QuantizeReply::kCodes));
  EXPECT_THAT(codes, ElementsAre(63, 1));
}

TEST(NaiveQuantizerTest, ARangeMakesTheScaleGrowAsItsWeightWould) {
  auto by_weight = BindOne("naive", json::object(), {3});
  auto by_range = BindOne("naive", json::object(), {3});
  for (double size : {0.3, 0.1, 0.7}) {
    const auto a =
        by_weight->QuantizeWeight(0, Values({size, -2 * size, 0}), QuantizeReply::kParameters);
    const auto b = by_range->QuantizeRange(
        0, Range{{static_cast<float>(-2 * size)}, {static_cast<float>(size)}});
    EXPECT_TRUE(*a->parameters == *b->parameters);
  }
  EXPECT_EQ(StateOf(*by_weight), StateOf(*by_range));
}

TEST(NaiveQuantizerTest, AllZerosHaveCodesZeroAndDivideByNothing) {
  auto session = BindOne("naive", json::object(), {2});
  auto result = session->QuantizeWeight(0, Values({0, -0.0}), QuantizeReply::kCodes);
  EXPECT_THAT(Codes(*result), ElementsAre(0, 0));
  EXPECT_THAT(result->parameters->scale, ElementsAre(1.0f));
  // That 1 was no scale that had to last.
  EXPECT_EQ(
      session->QuantizeWeight(0, Values({12.7f, 0}), QuantizeReply::kCodes)->parameters->scale[0],
      12.7f / 127.0f);
}

TEST(NaiveQuantizerTest, KnowsNoBitsButEight) {
  EXPECT_THAT(TryBind(MakeBinding("naive", {{{"quant_bits", 4}}}, {MakeLayer("a", {1})})),
              IsInvalid(HasSubstr("quant_bits is 4; it must be in [8, 8]")));
  EXPECT_THAT(
      TryBind(MakeBinding("naive", {{{"quant_bits", {{"weight", 8}}}}}, {MakeLayer("a", {1})})),
      IsOk());
}

}  // namespace
}  // namespace nni_compression::compression
