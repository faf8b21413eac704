#include "compression/kernels/count.h"

#include <cmath>

#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

constexpr DataType kWeightDtypes[] = {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16,
                                      DataType::kFloat64};

CountArguments All(const at::Tensor& weight, DataType dtype, int shift) {
  CountArguments arguments;
  arguments.dtype = dtype;
  arguments.weight = weight.data_ptr();
  arguments.elements = weight.numel();
  arguments.hi = KeyEnd(dtype);
  arguments.shift = shift;
  return arguments;
}

int LeastShift(DataType dtype) {
  int shift = 0;
  while ((KeyEnd(dtype) - 1) >> shift >= kMaxKeyRanges) ++shift;
  return shift;
}

TEST(CountTest, KeysOrderAsTheirValues) {
  for (const DataType dtype : kWeightDtypes) {
    EXPECT_EQ(KeyValue(dtype, 0), 0);
    EXPECT_TRUE(std::isfinite(KeyValue(dtype, KeyEnd(dtype) - 1)));
    EXPECT_TRUE(std::isinf(KeyValue(dtype, KeyEnd(dtype))));
    const int64_t one = (KeyEnd(dtype) >> MantissaBits(dtype) >> 1) << MantissaBits(dtype);
    EXPECT_EQ(KeyValue(dtype, one), 1);
    EXPECT_GT(KeyValue(dtype, one + 1), 1);
  }
}

// Against sums in float64, with and without a mask.
TEST(CountTest, CountsAndSumsAreThoseOfTheValues) {
  for (const DataType dtype : kWeightDtypes) {
    const at::Tensor weight = Random({10007}, 3, dtype, 0.1);
    std::string bits;
    for (int i = 0; i < 10007; ++i) bits.push_back(i % 3 == 0 ? '0' : '1');
    const Mask mask = MaskOf(bits);
    const at::Tensor wide = weight.to(at::kDouble).abs();
    const auto* const values = static_cast<const double*>(wide.data_ptr());
    for (const bool masked : {false, true}) {
      CountArguments arguments = All(weight, dtype, LeastShift(dtype));
      if (masked) arguments.previous = mask.bits().data();
      const KeySums sums = SumMagnitudes(arguments);
      const KeyCounts counted = CountMagnitudes(arguments);
      ASSERT_EQ(sums.ranges.size(), counted.counts.size());
      EXPECT_EQ(sums.largest, counted.largest);
      for (size_t r = 0; r < sums.ranges.size(); ++r) {
        const double low = KeyValue(dtype, static_cast<int64_t>(r) << arguments.shift);
        const double high = KeyValue(dtype, static_cast<int64_t>(r + 1) << arguments.shift);
        int64_t count = 0;
        double sum = 0, square = 0;
        for (int i = 0; i < 10007; ++i) {
          if (values[i] < low || values[i] >= high || (masked && i % 3 == 0)) continue;
          const double value = std::ldexp(values[i], -sums.exponent);
          ++count;
          sum += value;
          square += value * value;
        }
        EXPECT_EQ(sums.ranges[r].count, count);
        EXPECT_EQ(counted.counts[r], count);
        EXPECT_NEAR(sums.ranges[r].sum, sum, 2e-9 * sum);
        EXPECT_NEAR(sums.ranges[r].square, square, 2e-9 * square);
      }
    }
  }
}

TEST(CountTest, APartOfTheKeysIsDividedFurther) {
  const at::Tensor weight = Values({1, 1.25, 1.25, 1.5, 2, 0.5});
  CountArguments arguments = All(weight, DataType::kFloat32, 22);
  arguments.lo = int64_t{127} << 23;  // 1
  arguments.hi = int64_t{128} << 23;  // 2
  EXPECT_THAT(CountMagnitudes(arguments).counts, testing::ElementsAre(3, 1));
  EXPECT_EQ(CountMagnitudes(arguments).below, 1);
  const KeySums sums = SumMagnitudes(arguments, 0);
  ASSERT_EQ(sums.ranges.size(), 2u);
  EXPECT_EQ(sums.ranges[0].sum, 3.5);
  EXPECT_EQ(sums.ranges[0].square, 1 + 2 * 1.25 * 1.25);
  EXPECT_EQ(sums.ranges[1].square, 2.25);
}

TEST(CountTest, TellsOfElementsThatAreNotFinite) {
  for (const DataType dtype : kWeightDtypes) {
    for (const double bad : {std::nan(""), static_cast<double>(INFINITY)}) {
      const at::Tensor weight = Values({1, -bad, 2}, dtype);
      const CountArguments arguments = All(weight, dtype, LeastShift(dtype));
      EXPECT_GE(CountMagnitudes(arguments).largest, KeyEnd(dtype));
      EXPECT_GE(SumMagnitudes(arguments).largest, KeyEnd(dtype));
    }
  }
}

}  // namespace
}  // namespace nni_compression::compression
