#include "compression/kernels/n_m.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <numeric>

#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

std::string Keep(const at::Tensor& weight, DataType dtype, int axis, int64_t n, int64_t m,
                 const std::string& previous = "") {
  const Channels channels = Channels::Of({weight.sizes().data(), weight.sizes().size()}, axis);
  const Buffer flags = Buffer::Allocate(channels.elements());
  Buffer bits = Buffer::Allocate(ByteLength(DataType::kBit, channels.elements()));
  const Mask before = previous.empty() ? Mask::Ones(1) : MaskOf(previous);
  KeepNOfM(dtype, weight.data_ptr(), channels, n, m,
           previous.empty() ? nullptr : before.bits().data(), flags.data(), bits.data());
  EXPECT_TRUE(HasNOfM(bits.data(), channels, n, m));
  return Bits(*Mask::FromBits(std::move(bits), channels.elements()));
}

// By sorting each group.
std::string Plain(const at::Tensor& weight, int axis, int64_t n, int64_t m,
                  const std::string& previous) {
  const at::Tensor values = weight.to(at::kDouble).contiguous();
  const double* const w = values.data_ptr<double>();
  const Channels channels = Channels::Of({weight.sizes().data(), weight.sizes().size()}, axis);
  std::string bits(static_cast<size_t>(channels.elements()), '1');
  for (int64_t o = 0; o < channels.outer; ++o) {
    for (int64_t i = 0; i < channels.inner; ++i) {
      for (int64_t c = 0; c < channels.channels; c += m) {
        std::vector<int64_t> group;
        for (int64_t k = c; k < std::min(c + m, channels.channels); ++k) {
          group.push_back((o * channels.channels + k) * channels.inner + i);
        }
        const auto gone = [&](int64_t at) {
          return !previous.empty() && previous[static_cast<size_t>(at)] == '0';
        };
        std::stable_sort(group.begin(), group.end(), [&](int64_t a, int64_t b) {
          if (gone(a) != gone(b)) return gone(a);
          return !gone(a) && std::abs(w[a]) < std::abs(w[b]);
        });
        const auto size = static_cast<int64_t>(group.size());
        for (int64_t k = 0; k < size; ++k) {
          const int64_t at = group[static_cast<size_t>(k)];
          if (k < size - std::min(n, size) || gone(at)) bits[static_cast<size_t>(at)] = '0';
        }
      }
    }
  }
  return bits;
}

TEST(NOfMTest, KeepsTheLargestOfEachGroup) {
  EXPECT_EQ(Keep(Values({1, -4, 3, 2, 0, 0, 0, 0, 5, 5, 5, 6}), DataType::kFloat32, 0, 2, 4),
            "011000110011")
      << "of equal magnitudes the higher index";
  EXPECT_EQ(Keep(Values({1, 2, 3, 4, 9, 8}), DataType::kFloat32, 0, 2, 4), "001111")
      << "the last group has room for all that it has";
  EXPECT_EQ(Keep(Values({1, 2, 3, 4, 9, 8, 7}), DataType::kFloat32, 0, 2, 4), "0011110");
  EXPECT_EQ(Keep(Values({4, 3, 2, 1}), DataType::kFloat32, 0, 2, 4, "0111"), "0110");
  EXPECT_EQ(Keep(Values({4, 3, 2, 1}), DataType::kFloat32, 0, 2, 4, "0001"), "0001");
}

TEST(NOfMTest, IsThatOfSorting) {
  struct Case {
    std::vector<int64_t> shape;
    int axis;
  };
  const Case cases[] = {{{5, 16}, 1},       {{3, 7}, 1},   {{4, 8, 3, 3}, 1}, {{2, 10, 5}, 1},
                        {{3, 3, 12, 6}, 2}, {{8, 100}, 0}, {{8, 5, 2, 2}, 0}, {{33, 40}, 1}};
  uint64_t seed = 1;
  for (const DataType dtype :
       {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16, DataType::kFloat64}) {
    for (const Case& one : cases) {
      for (const auto& [n, m] : {std::pair<int64_t, int64_t>{2, 4}, {1, 2}, {3, 8}, {5, 7}}) {
        // Small integers, so that there are ties.
        const at::Tensor weight =
            Random(one.shape, ++seed, DataType::kFloat64, 2).round().to(*ToScalarType(dtype));
        const std::string half = Bits(*Mask::FromBits(
            [&] {
              Buffer bits = Buffer::Allocate(ByteLength(DataType::kBit, weight.numel()));
              const at::Tensor noise = Random({weight.numel()}, ++seed);
              std::fill_n(bits.data(), bits.size(), 0);
              for (int64_t i = 0; i < weight.numel(); ++i) {
                if (noise.data_ptr<float>()[i] > -1) bits.data()[i >> 3] |= 1 << (i & 7);
              }
              return bits;
            }(),
            weight.numel()));
        for (const std::string& previous : {std::string(), half}) {
          const std::string expected = Plain(weight, one.axis, n, m, previous);
          for (const Isa isa : SupportedIsas()) {
            SetIsaForTesting(isa);
            EXPECT_EQ(Keep(weight, dtype, one.axis, n, m, previous), expected)
                << NameOf(dtype, isa) << " " << one.axis << " " << n << ":" << m;
          }
          SetIsaForTesting(std::nullopt);
        }
      }
    }
  }
}

TEST(NOfMTest, AMaskThatKeepsMoreIsNone) {
  const Channels rows = Channels::Of({2, 8}, 1);
  EXPECT_TRUE(HasNOfM(MaskOf("0110101010010000").bits().data(), rows, 2, 4));
  EXPECT_FALSE(HasNOfM(MaskOf("0110101010010111").bits().data(), rows, 2, 4));
  const Channels columns = Channels::Of({4, 2}, 0);
  EXPECT_FALSE(HasNOfM(MaskOf("10101000").bits().data(), columns, 2, 4));
}

}  // namespace
}  // namespace nni_compression::compression
