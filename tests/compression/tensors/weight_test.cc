#include "compression/tensors/weight.h"

#include <string>
#include <thread>
#include <vector>

#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using testing::ElementsAre;
using testing::Gt;

TEST(WeightStatisticsTest, AnswersAreTheSameWithAndWithoutThem) {
  for (const DataType dtype : {DataType::kFloat32, DataType::kFloat16, DataType::kFloat64}) {
    const at::Tensor values = Random({64, 300}, 31, dtype);
    WeightStatistics statistics;
    for (const char* algorithm : {"naive", "qat", "dorefa"}) {
      for (int time = 0; time < 2; ++time) {  // the second time the range is known
        const auto known = BindOne(algorithm, nlohmann::json::object(), {64, 300}, dtype);
        const auto unknown = BindOne(algorithm, nlohmann::json::object(), {64, 300}, dtype);
        EXPECT_EQ(
            BytesOf(
                known->QuantizeWeight(0, Weight(values, &statistics), QuantizeReply::kCodes)->data),
            BytesOf(unknown->QuantizeWeight(0, values, QuantizeReply::kCodes)->data));
      }
    }
  }
}

TEST(WeightStatisticsTest, TheRangeIsKeptForEachGranularity) {
  const at::Tensor values = Values({1, -2, 3, 4}, DataType::kFloat32, {2, 2});
  WeightStatistics statistics;
  EXPECT_FALSE(statistics.range({}));
  const auto tensor = BindOne("qat", nlohmann::json::object(), {2, 2});
  ASSERT_THAT(tensor->QuantizeWeight(0, Weight(values, &statistics), QuantizeReply::kCodes),
              IsOk());
  EXPECT_THAT(statistics.range({})->minimum, ElementsAre(-2));
  EXPECT_FALSE(statistics.range({0}));
  const auto channels = BindOne("qat", {{"quant_scheme", "per_channel_affine"}}, {2, 2});
  ASSERT_THAT(channels->QuantizeWeight(0, Weight(values, &statistics), QuantizeReply::kCodes),
              IsOk());
  EXPECT_THAT(statistics.range({0})->minimum, ElementsAre(-2, 3));
  const auto groups =
      BindOne("qat", {{"quant_scheme", "per_channel_affine"}, {"group_size", 1}}, {2, 2});
  ASSERT_THAT(groups->QuantizeWeight(0, Weight(values, &statistics), QuantizeReply::kCodes),
              IsOk());
  EXPECT_THAT(statistics.range({0, 1})->minimum, ElementsAre(1, -2, 3, 4));
  EXPECT_THAT(statistics.range({0})->minimum, ElementsAre(-2, 3));
}

TEST(WeightStatisticsTest, AsksBeforeTheyGrow) {
  int64_t asked = 0;
  bool admits = false;
  WeightStatistics statistics([&](int64_t bytes) {
    asked = bytes;
    return admits;
  });
  for (const bool admitted : {false, true}) {
    admits = admitted;
    statistics.SetRange({0, 1}, {std::vector<float>(19200), std::vector<float>(19200)});
    EXPECT_THAT(asked, Gt(2 * 19200 * 4));
    EXPECT_EQ(statistics.range({0, 1}).has_value(), admitted);
  }
}

TEST(WeightStatisticsTest, SeveralThreadsMayUseThemAtOnce) {
  const at::Tensor values = Random({5000}, 33);
  WeightStatistics statistics;
  std::vector<std::string> codes(4);
  std::vector<std::thread> threads;
  for (auto& each : codes) {
    threads.emplace_back([&] {
      const auto session = BindOne("qat", nlohmann::json::object(), {5000});
      each = BytesOf(
          session->QuantizeWeight(0, Weight(values, &statistics), QuantizeReply::kCodes)->data);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& each : codes) EXPECT_EQ(each, codes[0]);
}

}  // namespace
}  // namespace nni_compression::compression
