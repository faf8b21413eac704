// Every instruction set gives the same bits as the portable loops, and those what plain code gives.
#include "compression/kernels/loops.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "compression/kernels/isa.h"
#include "compression/kernels/quantize.h"
#include "compression/kernels/range.h"
#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

constexpr DataType kTypes[] = {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16,
                               DataType::kFloat64};

QuantizationParameters MakeParameters(Rounding rounding, int bits, bool is_signed,
                                      int64_t channels) {
  QuantizationParameters parameters;
  parameters.rounding = rounding;
  parameters.formula = rounding == Rounding::kDoReFa ? Formula::kDoReFa : Formula::kAffine;
  parameters.bits = bits;
  parameters.code_max = is_signed ? (1 << (bits - 1)) - 1 : (1 << bits) - 1;
  parameters.code_min = is_signed ? -parameters.code_max : 0;
  for (int64_t c = 0; c < channels; ++c) {
    parameters.scale.push_back(0.01f * static_cast<float>(c + 1));
    parameters.zero_point.push_back(is_signed ? 0 : static_cast<int32_t>(c % 5));
  }
  return parameters;
}

class LoopsTest : public testing::TestWithParam<Isa> {
 protected:
  ~LoopsTest() override { SetIsaForTesting(std::nullopt); }

  // What `call` gives portably and with the instruction set.
  template <class F>
  void ExpectSame(const F& call, const std::string& what) {
    SetIsaForTesting(Isa::kPortable);
    const auto expected = call();
    SetIsaForTesting(GetParam());
    ASSERT_EQ(call(), expected) << what;
  }
};

TEST_P(LoopsTest, CodesAndValuesAreTheSame) {
  for (const DataType dtype : kTypes) {
    for (const auto& shape : {std::vector<int64_t>{1}, {65}, {3, 7, 5}, {4, 600}, {40, 33}}) {
      const at::Tensor weight = Random(shape, 21, dtype);
      for (const int axis : {-1, 0, 1}) {
        if (axis >= static_cast<int>(shape.size())) continue;
        const auto channels =
            Channels::Of(shape, axis < 0 ? std::nullopt : std::make_optional(axis));
        for (const Rounding rounding :
             {Rounding::kHalfEven, Rounding::kTruncate, Rounding::kDoReFa}) {
          for (const auto& [bits, is_signed] :
               {std::tuple(4, false), {8, true}, {8, false}, {16, true}, {16, false}}) {
            const auto parameters = MakeParameters(rounding, bits, is_signed, channels.channels);
            for (const QuantizeReply reply : {QuantizeReply::kCodes, QuantizeReply::kValues}) {
              ExpectSame(
                  [&] {
                    const DataType type =
                        reply == QuantizeReply::kCodes ? CodeType(parameters) : dtype;
                    const Buffer out = Buffer::Allocate(ByteLength(type, weight.numel()));
                    QuantizeTo(dtype, weight.data_ptr(), channels, parameters, reply, 0.9f,
                               out.data());
                    return BytesOf(out);
                  },
                  std::string(DataTypeName(dtype)));
            }
          }
        }
      }
    }
  }
}

TEST_P(LoopsTest, RangesAreTheSame) {
  for (const DataType dtype : kTypes) {
    for (const auto& shape : {std::vector<int64_t>{1}, {63}, {513}, {5, 129}, {300, 7}}) {
      const at::Tensor weight = Random(shape, 22, dtype);
      for (const int axis : {-1, 0, 1}) {
        if (axis >= static_cast<int>(shape.size())) continue;
        ExpectSame(
            [&] {
              const auto range = FindRange(
                  dtype, weight.data_ptr(),
                  Channels::Of(shape, axis < 0 ? std::nullopt : std::make_optional(axis)));
              return std::make_pair(range->minimum, range->maximum);
            },
            std::string(DataTypeName(dtype)));
      }
    }
  }
}

TEST_P(LoopsTest, EveryHalfBecomesTheFloatThatItIs) {
  SetIsaForTesting(GetParam());
  for (const DataType dtype : {DataType::kFloat16, DataType::kBFloat16}) {
    std::vector<uint16_t> all(1 << 16);
    for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
    for (size_t i = 0; i < all.size(); ++i) {
      const float expected =
          dtype == DataType::kFloat16
              ? static_cast<float>(c10::Half(all[i], c10::Half::from_bits()))
              : static_cast<float>(c10::BFloat16(all[i], c10::BFloat16::from_bits()));
      const Bounds bounds = CurrentLoops().bounds(dtype, all.data(), static_cast<int64_t>(i), 1);
      ASSERT_EQ(bounds.bad, !std::isfinite(expected)) << i;
      if (!bounds.bad) {
        ASSERT_EQ(bounds.minimum, expected) << i;
      }
    }
    // The same through the vector loop: the range of 16 at a time.
    for (size_t i = 0; i < all.size(); i += 128) {
      const Bounds whole = CurrentLoops().bounds(dtype, all.data(), static_cast<int64_t>(i), 128);
      Bounds parts = Bounds::None();
      for (size_t j = i; j < i + 128; ++j) {
        parts.Add(CurrentLoops().bounds(dtype, all.data(), static_cast<int64_t>(j), 1));
      }
      ASSERT_EQ(whole.bad, parts.bad) << i;
      if (!whole.bad) {
        ASSERT_EQ(whole.minimum, parts.minimum) << i;
        ASSERT_EQ(whole.maximum, parts.maximum) << i;
      }
    }
  }
}

TEST_P(LoopsTest, DoReFaIsWithinOneCodeOfTheFormulaWhateverTheWeightsAre) {
  SetIsaForTesting(GetParam());
  std::mt19937_64 engine(23);
  std::uniform_real_distribution<double> uniform(-1, 1);
  for (const double size : {1e-30, 1e-5, 0.1, 0.624, 0.7, 3.0, 50.0, 1e30}) {
    std::vector<double> values(5000);
    for (double& value : values) value = uniform(engine) * size;
    const at::Tensor weight = Values(values);
    const auto* w = static_cast<const float*>(weight.data_ptr());
    double max = 0;
    for (size_t i = 0; i < values.size(); ++i)
      max = std::max(max, std::tanh(std::fabs(double{w[i]})));
    const auto parameters = MakeParameters(Rounding::kDoReFa, 16, false, 1);
    std::vector<uint16_t> codes(values.size());
    QuantizeTo(DataType::kFloat32, w, Channels::Of({5000}, std::nullopt), parameters,
               QuantizeReply::kCodes, static_cast<float>(max), codes.data());
    for (size_t i = 0; i < values.size(); ++i) {
      const double expected = std::nearbyint((std::tanh(double{w[i]}) / (2 * max) + 0.5) * 65535);
      ASSERT_NEAR(codes[i], expected, 1) << w[i];
    }
  }
}

TEST_P(LoopsTest, MasksAreCountedAndUnpacked) {
  SetIsaForTesting(GetParam());
  std::mt19937_64 engine(24);
  for (int64_t n : {1, 7, 8, 9, 63, 64, 65, 1000, 4099}) {
    std::string bits(n, '1');
    for (char& bit : bits) bit = engine() % 2 == 0 ? '0' : '1';
    const Mask mask = MaskOf(bits);
    EXPECT_EQ(mask.pruned(), std::count(bits.begin(), bits.end(), '0'));
    for (int64_t begin : {int64_t{0}, n / 3, n - 1}) {
      std::vector<uint8_t> out(n - begin);
      mask.Unpack(begin, absl::MakeSpan(out));
      for (size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i], bits[begin + i] - '0');
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, LoopsTest, testing::ValuesIn(SupportedIsas()),
                         [](const auto& info) { return NameOf(info.param); });

}  // namespace
}  // namespace nni_compression::compression
