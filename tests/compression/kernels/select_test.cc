#include "compression/kernels/select.h"

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <random>
#include <set>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compression/kernels/isa.h"
#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

std::vector<double> Widened(const at::Tensor& weight) {
  const at::Tensor wide = weight.to(at::kDouble).contiguous();
  const auto* data = static_cast<const double*>(wide.data_ptr());
  return std::vector<double>(data, data + wide.numel());
}

// A plain sort by (pruned before, |w|, index).
class Sorted {
 public:
  Sorted(const at::Tensor& weight, const std::string& previous) {
    const std::vector<double> values = Widened(weight);
    order_.resize(values.size());
    std::iota(order_.begin(), order_.end(), 0);
    std::vector<double> rank(values.size());
    for (size_t i = 0; i < rank.size(); ++i) {
      rank[i] = !previous.empty() && previous[i] == '0' ? -1.0 : std::fabs(values[i]);
    }
    std::stable_sort(order_.begin(), order_.end(),
                     [&](int64_t a, int64_t b) { return rank[a] < rank[b]; });
  }

  std::string Bits(int64_t prune) const {
    std::string bits(order_.size(), '1');
    for (int64_t i = 0; i < prune; ++i) bits[order_[i]] = '0';
    return bits;
  }

 private:
  std::vector<int64_t> order_;
};

// Nothing when the kernel says that a weight is not finite.
std::optional<Mask> SelectMask(DataType dtype, const at::Tensor& weight, int64_t prune,
                               const std::optional<Mask>& previous,
                               const SelectLimits& limits = {}) {
  SelectArguments arguments;
  arguments.limits = limits;
  arguments.dtype = dtype;
  arguments.weight = weight.data_ptr();
  arguments.elements = weight.numel();
  arguments.prune = prune;
  if (previous) {
    arguments.previous = previous->bits().data();
    arguments.previously_pruned = previous->pruned();
  }
  Buffer bits = Buffer::Allocate(ByteLength(DataType::kBit, weight.numel()));
  if (!SelectSmallest(arguments, bits.data())) return std::nullopt;
  return Mask::FromBits(std::move(bits), weight.numel()).value();
}

std::string Select(DataType dtype, const at::Tensor& weight, int64_t prune,
                   const std::string& previous = "", const SelectLimits& limits = {}) {
  const auto mask =
      SelectMask(dtype, weight, prune,
                 previous.empty() ? std::nullopt : std::make_optional(MaskOf(previous)), limits);
  return mask ? Bits(*mask) : "not finite";
}

// The places that a sample of the kernel looks at.
std::vector<size_t> SamplePlaces(int64_t n, int64_t count = 512) {
  std::vector<size_t> places;
  for (uint64_t i = 1; i <= static_cast<uint64_t>(count); ++i) {
    places.push_back(static_cast<size_t>(
        static_cast<unsigned __int128>(i * 0x9e3779b97f4a7c15u) * static_cast<uint64_t>(n) >> 64));
  }
  return places;
}

// Weights that agree in magnitude as much as binary, ternary and quantized ones do.
struct FewValues {
  std::vector<double> values;
  std::vector<int64_t> borders;  // how many weights are below each of the magnitudes

  static FewValues Draw(std::mt19937_64& engine) {
    // Exact in every type of weights; neighbours share their upper bits.
    constexpr double kMagnitudes[] = {0, 0.5, 0.50390625, 1, 1.0078125, 1.5, 2, 100, 1024};
    const size_t distinct = 1 + engine() % 5;
    std::vector<double> magnitudes(std::begin(kMagnitudes), std::end(kMagnitudes));
    std::shuffle(magnitudes.begin(), magnitudes.end(), engine);
    magnitudes.resize(distinct);
    FewValues few;
    few.values.resize(1 + engine() % (engine() % 2 == 0 ? 300 : 5000));
    // Often all but one of the magnitudes are rare.
    const uint64_t share = engine() % 3 == 0 ? 1 : 1 + engine() % 1000;
    for (double& value : few.values) {
      const double magnitude = magnitudes[engine() % share == 0 ? engine() % distinct : 0];
      value = engine() % 2 == 0 ? magnitude : -magnitude;
    }
    // What the sample says may be wrong altogether.
    if (engine() % 2 == 0) {
      const double seen = magnitudes[engine() % distinct];
      for (const size_t place : SamplePlaces(static_cast<int64_t>(few.values.size()))) {
        few.values[place] = seen;
      }
    }
    for (const double magnitude : magnitudes) {
      few.borders.push_back(std::count_if(few.values.begin(), few.values.end(), [&](double value) {
        return std::fabs(value) < magnitude;
      }));
    }
    return few;
  }
};

class SelectTest : public testing::TestWithParam<std::tuple<DataType, Isa>> {
 protected:
  SelectTest() { SetIsaForTesting(std::get<Isa>(GetParam())); }
  ~SelectTest() override { SetIsaForTesting(std::nullopt); }

  static DataType dtype() { return std::get<DataType>(GetParam()); }

  // Compares with the sort at many counts, with and without a mask before.
  void Check(const std::vector<double>& values) {
    const at::Tensor weight = Values(values, dtype());
    const int64_t n = weight.numel();
    const Sorted sorted(weight, "");
    for (int64_t prune : {int64_t{0}, int64_t{1}, n / 7, n / 2, n * 4 / 5, n - 1, n}) {
      const std::string expected = sorted.Bits(prune);
      ASSERT_EQ(Select(dtype(), weight, prune), expected)
          << n << " elements, " << prune << " to prune";
    }
    std::mt19937_64 engine(n);
    std::string previous(n, '1');
    for (char& bit : previous) bit = engine() % 3 == 0 ? '0' : '1';
    const auto pruned = static_cast<int64_t>(std::count(previous.begin(), previous.end(), '0'));
    const Sorted rest(weight, previous);
    for (int64_t prune : {pruned, std::min(pruned + 1, n), (pruned + n) / 2, n}) {
      const std::string expected = rest.Bits(prune);
      ASSERT_EQ(Select(dtype(), weight, prune, previous), expected)
          << n << " elements, " << prune << " to prune, " << pruned << " pruned before";
    }
  }
};

TEST_P(SelectTest, AgreesWithASortOnRandomWeightsOfEverySizeAroundWordsAndBlocks) {
  std::mt19937_64 engine(7);
  std::normal_distribution<double> normal;
  for (int64_t n : {1, 2, 7, 8, 9, 63, 64, 65, 127, 128, 129, 1000, 4095, 4096, 4097}) {
    std::vector<double> values(n);
    for (double& value : values) value = normal(engine);
    Check(values);
  }
}

TEST_P(SelectTest, AgreesWithASortWhenAllWeightsAreEqual) {
  for (double value : {0.0, 0.5, -3.0}) Check(std::vector<double>(333, value));
}

TEST_P(SelectTest, AgreesWithASortWhenThereAreTwoMagnitudes) {
  std::mt19937_64 engine(8);
  std::vector<double> values(777);
  for (double& value : values) value = (engine() % 2 ? 1 : -1) * (engine() % 2 ? 0.5 : 0.50390625);
  Check(values);
}

TEST_P(SelectTest, AgreesWithASortWhenWeightsDescend) {
  std::vector<double> values(1500);
  for (size_t i = 0; i < values.size(); ++i) values[i] = 1500.0 - static_cast<double>(i);
  Check(values);
}

TEST_P(SelectTest, AgreesWithASortOnDenormalsAndExtremes) {
  const double tiny[] = {std::numeric_limits<float>::denorm_min(),
                         3 * static_cast<double>(std::numeric_limits<float>::denorm_min()),
                         std::ldexp(1.0, -24),
                         std::ldexp(1.0, -23),
                         std::ldexp(1.0, -133),
                         65504.0,
                         60000.0,
                         1e-5};
  std::mt19937_64 engine(9);
  std::vector<double> values(500);
  for (double& value : values) value = (engine() % 2 ? 1 : -1) * tiny[engine() % 8];
  Check(values);
}

TEST_P(SelectTest, AgreesWithASortOnWeightsThatNeedASample) {
  std::mt19937_64 engine(11);
  std::normal_distribution<double> normal;
  for (int64_t n : {2049, 16384 + 63, 70001}) {
    std::vector<double> values(n);
    for (double& value : values) value = normal(engine);
    Check(values);
  }
}

TEST_P(SelectTest, AgreesWithASortWhenTheSampleSaysNothing) {
  // Small ones with a few large, in blocks, in periods, and at one end: wherever a sample looks.
  for (int64_t period : {2, 3, 64, 255, 256, 257, 4096}) {
    std::vector<double> values(20000);
    for (size_t i = 0; i < values.size(); ++i) {
      const auto place = static_cast<int64_t>(i);
      values[i] = place % period == 0 ? 100.0 + static_cast<double>(place % 37)
                                      : static_cast<double>(place % 101) / 128.0;
    }
    Check(values);
  }
  std::vector<double> values(20000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = i < 19990 ? 0.25 : 8.0;
  Check(values);
}

TEST_P(SelectTest, AgreesWithASortWhenTheSampleIsAllWrong) {
  // Where the sample looks all is large, or all is small.
  const int64_t n = 30000;
  for (double seen : {100.0, 0.001}) {
    std::mt19937_64 engine(14);
    std::vector<double> values(n);
    for (double& value : values) value = 1 + static_cast<double>(engine() % 64) / 64;
    for (const size_t place : SamplePlaces(n)) values[place] = seen;
    Check(values);
  }
}

TEST_P(SelectTest, AgreesWithASortWhenManyTiesCrossTheThreshold) {
  // More than are collected.
  std::vector<double> values((int64_t{1} << 19) + 1000, 1.0);
  for (size_t i = 0; i < values.size(); i += 3) values[i] = -1.0;
  for (size_t i = 0; i < values.size(); i += 1001) values[i] = 0.5;
  Check(values);
}

TEST_P(SelectTest, AgreesWithASortWhenWeightsClusterAroundTheThreshold) {
  std::mt19937_64 engine(12);
  std::vector<double> values(30000);
  for (double& value : values) {
    value = 1.0 + static_cast<double>(engine() % 64) * std::ldexp(1.0, -7 - engine() % 17);
  }
  Check(values);
}

TEST_P(SelectTest, AgreesWithASortOnFewValuesAtEveryBorderOnEveryPath) {
  const int threads_before = at::get_num_threads();
  std::mt19937_64 engine(15);
  const int rounds = std::getenv("NNI_COMPRESSION_LONG") == nullptr ? 40 : 1500;
  for (int round = 0; round < rounds; ++round) {
    const FewValues few = FewValues::Draw(engine);
    const at::Tensor weight = Values(few.values, dtype());
    const int64_t n = weight.numel();
    std::string previous(n, '1');
    for (char& bit : previous) bit = engine() % 4 == 0 ? '0' : '1';
    const auto pruned = static_cast<int64_t>(std::count(previous.begin(), previous.end(), '0'));
    std::set<int64_t> prunes = {0, n, static_cast<int64_t>(engine() % (n + 1))};
    for (const int64_t border : few.borders) {
      for (int64_t prune : {border - 1, border, border + 1}) {
        prunes.insert(std::clamp<int64_t>(prune, 0, n));
      }
    }
    SelectLimits limits;
    limits.found = std::vector<int64_t>{1, 7, 64, 1000, limits.found}[engine() % 5];
    limits.tiny = std::vector<int64_t>{0, 100, limits.tiny}[engine() % 3];
    limits.grain = std::vector<int64_t>{64, 512, limits.grain}[engine() % 3];
    at::set_num_threads(std::vector<int>{1, 2, 8}[engine() % 3]);
    const Sorted sorted(weight, ""), rest(weight, previous);
    for (const int64_t prune : prunes) {
      SCOPED_TRACE(absl::StrCat("round ", round, ": ", n, " elements, ", prune, " to prune, found ",
                                limits.found, ", tiny ", limits.tiny, ", grain ", limits.grain));
      const std::string expected = sorted.Bits(prune);
      ASSERT_EQ(Select(dtype(), weight, prune, "", limits), expected);
      if (prune < pruned) continue;
      ASSERT_EQ(Select(dtype(), weight, prune, previous, limits), rest.Bits(prune));
    }
  }
  at::set_num_threads(threads_before);
}

// With the sizes that servers have: the sample sees only the larger of two magnitudes, so the
// bracket begins above the threshold, and more lies inside than is collected.
TEST_P(SelectTest, PrunesNoWeightTooManyWhereTheSampleSawOnlyLargerOnes) {
  const int64_t n = 3'000'000;
  std::vector<double> values(n, 1.0);
  std::fill_n(values.begin(), 200'000, -0.5);
  for (const size_t place : SamplePlaces(n, n / 256)) values[place] = 1.0;
  const int64_t small = std::count(values.begin(), values.end(), -0.5);
  const at::Tensor weight = Values(values, dtype());
  EXPECT_EQ(SelectMask(dtype(), weight, small, std::nullopt)->pruned(), small);
}

TEST_P(SelectTest, TakesNegativeZeroForZero) {
  const at::Tensor weight = Values({0.0, -0.0, 0.0, -0.0, 1.0}, dtype());
  EXPECT_EQ(Select(dtype(), weight, 1), "01111");
  EXPECT_EQ(Select(dtype(), weight, 2), "00111");
  EXPECT_EQ(Select(dtype(), weight, 3), "00011");
}

TEST_P(SelectTest, PrunesTheLowerIndexOfEqualMagnitudesFirst) {
  EXPECT_EQ(Select(dtype(), Values(std::vector<double>(10, 1.0), dtype()), 1), "0111111111");
  EXPECT_EQ(Select(dtype(), Values({2, -1, 1, -1, 1}, dtype()), 3), "10001");
}

TEST_P(SelectTest, FindsWeightsThatAreNotFiniteWhateverIsToBePruned) {
  for (double bad : {std::nan(""), -std::numeric_limits<double>::infinity()}) {
    for (int64_t position : {0, 64, 199}) {
      std::vector<double> values(200, 1.0);
      values[position] = bad;
      const at::Tensor weight = Values(values, dtype());
      std::string previous(200, '1');
      previous[position] = '0';
      for (int64_t prune : {1, 100, 200}) {
        EXPECT_EQ(Select(dtype(), weight, prune), "not finite");
        EXPECT_EQ(Select(dtype(), weight, prune, previous), "not finite");
      }
      EXPECT_EQ(Select(dtype(), weight, 0), "not finite");
    }
  }
}

TEST_P(SelectTest, GivesTheSameBitsOnAnyNumberOfThreads) {
  const int threads_before = at::get_num_threads();
  // Few values, so that ties cross the threshold in the middle of the weight.
  const int64_t n = (int64_t{9} << 20) + 77;
  std::mt19937_64 engine(10);
  std::vector<float> values(n);
  for (float& value : values) value = static_cast<float>(engine() % 1000) / 64.0f;
  Buffer buffer = Buffer::Allocate(n * 4);
  std::memcpy(buffer.data(), values.data(), n * 4);
  const at::Tensor weight =
      buffer.AsTensor(DataType::kFloat32, {n}).to(ToScalarType(dtype()).value());
  std::vector<Mask> results;
  for (int threads : {1, 2, 8}) {
    at::set_num_threads(threads);
    results.push_back(*SelectMask(dtype(), weight, n / 2, std::nullopt));
    results.push_back(*SelectMask(dtype(), weight, n * 3 / 4, results.back()));
  }
  at::set_num_threads(threads_before);
  EXPECT_EQ(results[0].pruned(), n / 2);
  EXPECT_EQ(results[1].pruned(), n * 3 / 4);
  for (size_t i = 2; i < results.size(); ++i) EXPECT_TRUE(results[i] == results[i % 2]);
}

INSTANTIATE_TEST_SUITE_P(Types, SelectTest,
                         testing::Combine(testing::Values(DataType::kFloat32, DataType::kFloat16,
                                                          DataType::kBFloat16, DataType::kFloat64),
                                          testing::ValuesIn(SupportedIsas())),
                         [](const auto& info) {
                           return NameOf(std::get<DataType>(info.param), std::get<Isa>(info.param));
                         });

TEST(SelectFloat64Test, TellsApartWeightsThatDifferInTheirLastBitOnly) {
  const double next = std::nextafter(1.0, 2.0);
  const at::Tensor weight = Values({next, 1.0, next, 1.0, -next}, DataType::kFloat64);
  EXPECT_EQ(Select(DataType::kFloat64, weight, 2), "10101");
  EXPECT_EQ(Select(DataType::kFloat64, weight, 4), "00001");
}

TEST(SelectFloat32Test, TellsApartWeightsThatDifferInTheirLastBitOnly) {
  const double next = std::nextafter(1.0f, 2.0f);
  EXPECT_EQ(Select(DataType::kFloat32, Values({next, 1.0, next, -1.0}), 2), "1010");
}

TEST(SelectFloat32Test, AgreesWithASortWhenAllThatIsNearTheThresholdLiesTogether) {
  // More than one thread's share of what is collected at once.
  const int threads_before = at::get_num_threads();
  std::mt19937_64 engine(13);
  std::vector<double> values(2'500'000);
  for (size_t i = 0; i < values.size(); ++i) {
    const double random = static_cast<double>(engine() % 1'000'003) * 1e-6;
    values[i] = i < 400'000 ? 1 + random * 1e-2 : i % 2 == 0 ? 0.5 * random : 2 + random;
  }
  const at::Tensor weight = Values(values, DataType::kFloat32);
  const Sorted sorted(weight, "");
  for (int threads : {1, 3}) {
    at::set_num_threads(threads);
    for (int64_t prune : {1'050'000, 1'250'000, 1'449'999, 1'450'001}) {
      EXPECT_EQ(Select(DataType::kFloat32, weight, prune), sorted.Bits(prune))
          << threads << " threads, " << prune << " to prune";
    }
  }
  at::set_num_threads(threads_before);
}

TEST(SelectUnalignedTest, ReadsAWeightAtAnyAddress) {
  std::vector<char> bytes(4 * 100 + 1);
  const at::Tensor weight = Random({100}, 3);
  std::memcpy(bytes.data() + 1, weight.data_ptr(), 400);
  SelectArguments arguments;
  arguments.weight = bytes.data() + 1;
  arguments.elements = 100;
  arguments.prune = 60;
  Buffer bits = Buffer::Allocate(13);
  ASSERT_TRUE(SelectSmallest(arguments, bits.data()));
  EXPECT_EQ(Bits(Mask::FromBits(bits, 100).value()), Sorted(weight, "").Bits(60));
}

}  // namespace
}  // namespace nni_compression::compression
