// The calls with tensors, against a real server.
#include "nni_compression/session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <thread>

#include "tests/client/client_test_base.h"

namespace nni_compression {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

class SessionTest : public ClientTestBase {
 protected:
  Session Bind(const BindRequest& request, const ClientOptions& options = {}) {
    auto session = Connect(AddressOf(*server_), options).BindModel(request);
    if (!session.ok()) {
      ADD_FAILURE() << session.status();
      std::abort();
    }
    return *std::move(session);
  }

  std::unique_ptr<server::Server> server_ = StartServer();
};

TEST_F(SessionTest, MasksPruneExactlyTheSmallest) {
  // From one message to several chunks, and sizes that are no multiple of eight.
  for (const int64_t columns : {1, 7, 1000, 700001}) {
    const Session session = Bind(Request("level", kLevel, {"a", "b"}, 3, columns));
    const auto a = Weight(3 * columns, 1), b = Weight(3 * columns, 2);
    const auto masks = AllOrError(session.CalcMask(
        {MakeTensor<float>("a", {3, columns}, a), MakeTensor<float>("b", {3, columns}, b)}));
    ASSERT_TRUE(masks.ok()) << masks.status();
    const int64_t k = static_cast<int64_t>(static_cast<double>(3 * columns) * 0.8);
    for (const auto& [mask, weight] : {std::pair(&(*masks)[0], &a), std::pair(&(*masks)[1], &b)}) {
      EXPECT_EQ(mask->pruned(), k);
      EXPECT_DOUBLE_EQ(mask->target_sparsity(), 0.8);
      std::vector<bool> pruned(mask->elements());
      for (int64_t i = 0; i < mask->elements(); ++i) pruned[i] = !mask->kept(i);
      EXPECT_EQ(pruned, Smallest(*weight, k));
    }
    EXPECT_EQ((*masks)[1].layer(), "b");
  }
}

TEST_F(SessionTest, ALayersErrorLeavesTheOthersAlone) {
  const Session session = Bind(Request("level", kLevel, {"a", "b", "c"}, 2, 300000));
  const auto good = Weight(600000, 1);
  auto bad = good;
  bad[12345] = std::numeric_limits<float>::quiet_NaN();
  const auto masks = session.CalcMask(
      {MakeTensor<float>("a", {2, 300000}, good), MakeTensor<float>("b", {2, 300000}, bad),
       MakeTensor<float>("unknown", {2, 300000}, good), MakeTensor<float>("c", {300000}, good),
       MakeTensor<float>("c", {300000, 2}, good), MakeTensor<float>("c", {2, 300000}, good)});
  ASSERT_EQ(masks.size(), 6u);
  EXPECT_TRUE(masks[0].ok()) << masks[0].status();
  EXPECT_EQ(masks[1].status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(masks[1].status().message()), HasSubstr("12345"));
  EXPECT_EQ(masks[2].status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(masks[3].status().message()), HasSubstr("has 2400000 bytes"));
  EXPECT_EQ(masks[4].status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(masks[5].ok()) << masks[5].status();
}

TEST_F(SessionTest, EveryTensorOfACallThatFailsGetsItsError) {
  const Session session = Bind(Request("level", kLevel, {"a", "b"}, 2, 300000));
  ASSERT_TRUE(session.Close().ok());
  const auto weight = Weight(600000, 1);
  const auto masks = session.CalcMask(
      {MakeTensor<float>("a", {2, 300000}, weight), MakeTensor<float>("b", {2, 300000}, weight)});
  ASSERT_EQ(masks.size(), 2u);
  for (const auto& mask : masks) EXPECT_EQ(mask.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(session.CalcMask({}), IsEmpty());
}

TEST_F(SessionTest, FollowsTheEpochsOfAGradualPruner) {
  const Session session =
      Bind(Request("agp", R"([{"final_sparsity": 0.8, "end_epoch": 10, "op_types": ["default"]}])",
                   {"fc"}, 10, 10));
  std::vector<float> weight(100);
  for (int i = 0; i < 100; ++i) weight[i] = static_cast<float>(i + 1);
  std::vector<int64_t> zeros;
  for (int64_t epoch = 0; epoch <= 10; ++epoch) {
    const auto stale = session.UpdateEpoch(epoch);
    ASSERT_TRUE(stale.ok()) << stale.status();
    CallOptions options;
    options.epoch = epoch;
    const auto masks = session.CalcMask({MakeTensor<float>("fc", {10, 10}, weight)}, options);
    ASSERT_TRUE(masks[0].ok()) << masks[0].status();
    EXPECT_EQ(masks[0]->epoch(), epoch);
    zeros.push_back(masks[0]->pruned());
  }
  EXPECT_THAT(zeros, ElementsAre(0, 23, 42, 56, 66, 72, 77, 79, 79, 80, 80));
  CallOptions elsewhere;
  elsewhere.epoch = 3;
  const auto refused = session.CalcMask({MakeTensor<float>("fc", {10, 10}, weight)}, elsewhere);
  EXPECT_EQ(refused[0].status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(SessionTest, LayersOfAFilterGroupLoseTheSameFilters) {
  BindRequest request =
      Request("l1_filter", R"([{"sparsity": 0.5, "op_types": ["default"]}])", {"a", "b"}, 4, 2);
  request.filter_groups = {{{{"a", {}}, {"b", {3, 2, 1, 0}}}, 2}};
  const Session session = Bind(request);
  const std::vector<float> a = {1, 1, 5, 5, 2, 2, 7, 7};
  const std::vector<float> b = {0, 0, 1, 1, 0, 0, 3, 3};  // of units 3, 2, 1 and 0
  const auto masks = AllOrError(
      session.CalcMask({MakeTensor<float>("a", {4, 2}, a), MakeTensor<float>("b", {4, 2}, b)}));
  ASSERT_TRUE(masks.ok()) << masks.status();
  std::vector<std::vector<bool>> kept;
  for (const auto& mask : *masks) {
    std::vector<bool>& own = kept.emplace_back();
    for (int64_t filter = 0; filter < 4; ++filter) own.push_back(mask.kept(2 * filter));
  }
  // Scores 8, 10, 6 and 14, of which each run of two loses the smaller.
  EXPECT_THAT(kept[0], ElementsAre(false, true, false, true));
  EXPECT_THAT(kept[1], ElementsAre(true, false, true, false));
}

TEST_F(SessionTest, TakesAMaskThatTheTrainerComputed) {
  const Session session = Bind(Request("level", kLevel, {"fc"}, 4, 4));
  const std::vector<uint8_t> bits = {0xf0, 0x01};
  const auto masks = session.CalcMask({{"fc", DataType::kBit, {4, 4}, bits, TensorRole::kMask}});
  ASSERT_TRUE(masks[0].ok()) << masks[0].status();
  EXPECT_EQ(masks[0]->bits(), absl::MakeConstSpan(bits));
}

TEST_F(SessionTest, QuantizesToCodesValuesOrParameters) {
  const Session session = Bind(
      Request("qat", R"([{"quant_types": ["weight"], "quant_bits": 8, "op_types": ["default"]}])",
              {"fc"}, 1, 4));
  const std::vector<float> weight = {-1, 2, 3, 5};
  const Tensor tensor = MakeTensor<float>("fc", {1, 4}, weight);

  const auto codes = session.QuantizeWeight({tensor});
  ASSERT_TRUE(codes[0].ok()) << codes[0].status();
  EXPECT_EQ(codes[0]->parameters.bits, 8);
  EXPECT_THAT(codes[0]->parameters.zero_point, ElementsAre(42));
  EXPECT_THAT(codes[0]->parameters.scale, ElementsAre(6.0f / 255.0f));
  const auto dequantized = codes[0]->Dequantize();
  ASSERT_TRUE(dequantized.ok()) << dequantized.status();

  const auto values = session.QuantizeWeight({tensor}, QuantizeReply::kValues);
  ASSERT_TRUE(values[0].ok()) << values[0].status();
  ASSERT_EQ(values[0]->data.size(), 16);
  EXPECT_EQ(std::memcmp(values[0]->data.data(), dequantized->data(), 16), 0);
  for (int i = 0; i < 4; ++i) EXPECT_NEAR((*dequantized)[i], weight[i], 6.0 / 255);

  const auto parameters = session.QuantizeWeight({tensor}, QuantizeReply::kParameters);
  ASSERT_TRUE(parameters[0].ok()) << parameters[0].status();
  EXPECT_EQ(parameters[0]->data.size(), 0);
  EXPECT_THAT(parameters[0]->parameters.zero_point, ElementsAre(42));

  const std::vector<float> range = {-1, 5};
  const auto ranged = session.QuantizeWeight(
      {MakeTensor<float>("fc", {2}, range, TensorRole::kRange)}, QuantizeReply::kCodes);
  ASSERT_TRUE(ranged[0].ok()) << ranged[0].status();
  EXPECT_THAT(ranged[0]->parameters.scale, ElementsAre(6.0f / 255.0f));
}

TEST_F(SessionTest, QuantizesPerChannel) {
  const Session session =
      Bind(Request("qat", R"([{"quant_types": ["weight"], "quant_scheme": "per_channel_symmetric",
                              "op_types": ["default"]}])",
                   {"fc"}, 2, 3));
  const std::vector<float> weight = {1, -2, 0.5, 10, 20, -127};
  const auto codes = session.QuantizeWeight({MakeTensor<float>("fc", {2, 3}, weight)});
  ASSERT_TRUE(codes[0].ok()) << codes[0].status();
  EXPECT_EQ(codes[0]->parameters.channel_axis, 0);
  EXPECT_THAT(codes[0]->parameters.scale, ElementsAre(2.0f / 127.0f, 1.0f));
  EXPECT_THAT(codes[0]->parameters.zero_point, ElementsAre(0, 0));
  const auto values = codes[0]->Dequantize();
  EXPECT_EQ((*values)[3], 10.0f);
  EXPECT_EQ((*values)[5], -127.0f);
}

TEST_F(SessionTest, QuantizesPerGroup) {
  const Session session =
      Bind(Request("qat", R"([{"quant_scheme": "per_channel_symmetric", "group_size": 2,
                              "op_types": ["default"]}])",
                   {"fc"}, 2, 4));
  const std::vector<float> weight = {1, -2, 0.5, 127, 10, 20, -127, 254};
  const auto codes = session.QuantizeWeight({MakeTensor<float>("fc", {2, 4}, weight)});
  ASSERT_TRUE(codes[0].ok()) << codes[0].status();
  EXPECT_EQ(codes[0]->parameters.group_size, 2);
  EXPECT_THAT(codes[0]->parameters.scale, ElementsAre(2.0f / 127.0f, 1.0f, 20.0f / 127.0f, 2.0f));
  const auto values = codes[0]->Dequantize();
  EXPECT_EQ((*values)[3], 127.0f);
  EXPECT_EQ((*values)[7], 254.0f);
}

TEST_F(SessionTest, DoReFaCodesBecomeTheDocumentedValues) {
  const Session session =
      Bind(Request("dorefa", R"([{"quant_bits": 8, "op_types": ["default"]}])", {"fc"}, 1, 5));
  const std::vector<float> weight = {-1, -0.5, 0, 0.5, 1};
  const auto codes = session.QuantizeWeight({MakeTensor<float>("fc", {1, 5}, weight)});
  ASSERT_TRUE(codes[0].ok()) << codes[0].status();
  const auto values = codes[0]->Dequantize();
  ASSERT_TRUE(values.ok()) << values.status();
  const float expected[] = {-1, -0.60784316f, 0.00392163f, 0.60784316f, 1};
  for (int i = 0; i < 5; ++i) EXPECT_NEAR((*values)[i], expected[i], 1e-6) << i;
}

TEST_F(SessionTest, StepCarriesRangesAndAnswersParameters) {
  const Session session = Bind(Request(
      "qat", R"([{"quant_types": ["weight"], "quant_start_step": 5, "op_types": ["default"]}])",
      {"fc"}, 1, 4));
  EXPECT_TRUE(session.plan().needs_step());
  const std::vector<float> weight = {-1, 2, 3, 5};
  const Tensor tensor = MakeTensor<float>("fc", {1, 4}, weight);
  const auto before = session.QuantizeWeight({tensor});
  ASSERT_TRUE(before[0].ok()) << before[0].status();
  EXPECT_TRUE(before[0]->unquantized);

  const auto result = session.Step(5);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->step, 5);
  EXPECT_THAT(result->stale_layers, ElementsAre("fc"));
  EXPECT_EQ(session.Step(3)->step, 5);
  EXPECT_FALSE(session.QuantizeWeight({tensor})[0]->unquantized);

  const std::vector<float> range = {-1, 5};
  const auto ranged =
      session.Step(6, {MakeTensor<float>("fc", {2}, range, TensorRole::kRange),
                       MakeTensor<float>("unknown", {2}, range, TensorRole::kRange)});
  ASSERT_TRUE(ranged.ok()) << ranged.status();
  ASSERT_EQ(ranged->parameters.size(), 2u);
  ASSERT_TRUE(ranged->parameters[0].ok()) << ranged->parameters[0].status();
  EXPECT_THAT(ranged->parameters[0]->parameters.scale, ElementsAre(6.0f / 255.0f));
  EXPECT_THAT(ranged->parameters[0]->parameters.zero_point, ElementsAre(42));
  EXPECT_EQ(ranged->parameters[1].status().code(), absl::StatusCode::kNotFound);
}

TEST_F(SessionTest, AnotherSessionGoesOnWithWhatThisOneRemembers) {
  const std::string rules = R"([{"quant_types": ["weight", "output"], "op_types": ["default"]}])";
  BindRequest request = Request("qat", rules, {"fc"}, 1, 4);
  const Session session = Bind(request);
  const std::vector<float> wide = {-1, 5}, narrow = {-1, 1};
  const auto output = [](const std::vector<float>& range) {
    return MakeTensor<float>("fc", {2}, range, TensorRole::kOutputRange);
  };
  ASSERT_TRUE(session.Step(1, {output(wide)}).ok());
  const auto last = session.Step(2, {output(narrow)});
  ASSERT_TRUE(last.ok()) << last.status();
  const Memory memory = last->parameters[0]->memory;
  EXPECT_THAT(memory.at("output_range"), ElementsAre(-1.0f, 0.99f * 5.0f + 0.01f * 1.0f));

  request.memory = {{"fc", memory}};
  request.step = last->step;
  request.step_applied = true;
  const Session other = Bind(request);
  EXPECT_EQ(other.Step(2, {output(wide)})->parameters[0]->memory, memory) << "it was taken";
  const auto next = session.Step(3, {output(wide)});
  EXPECT_EQ(other.Step(3, {output(wide)})->parameters[0]->memory, next->parameters[0]->memory);
}

TEST_F(SessionTest, ResultsAreTheSameHoweverManyLayersAStreamHas) {
  std::vector<std::string> names;
  for (int i = 0; i < 300; ++i) names.push_back(absl::StrCat("layer", i));
  const Session together = Bind(Request("level", kLevel, names, 20, 50));
  const Session apart = Bind(Request("level", kLevel, names, 20, 50));
  std::vector<std::vector<float>> weights;
  std::vector<Tensor> tensors;
  for (int i = 0; i < 300; ++i) weights.push_back(Weight(1000, i));
  for (int i = 0; i < 300; ++i)
    tensors.push_back(MakeTensor<float>(names[i], {20, 50}, weights[i]));
  const auto all = together.CalcMask(tensors);
  for (int i = 0; i < 300; ++i) {
    const auto one = apart.CalcMask({tensors[i]});
    ASSERT_TRUE(one[0].ok()) << one[0].status();
    ASSERT_TRUE(all[i].ok()) << all[i].status();
    EXPECT_EQ(one[0]->bits(), all[i]->bits());
  }
}

TEST_F(SessionTest, ReportsProgress) {
  const Session session = Bind(Request("level", kLevel, {"a", "b"}, 2, 1 << 20));
  const auto weight = Weight(2 << 20, 1);
  std::vector<Progress> seen;
  CallOptions options;
  options.progress = [&](const Progress& progress) { seen.push_back(progress); };
  const auto masks = session.CalcMask(
      {MakeTensor<float>("a", {2, 1 << 20}, weight), MakeTensor<float>("b", {2, 1 << 20}, weight)},
      options);
  ASSERT_TRUE(masks[0].ok() && masks[1].ok());
  EXPECT_EQ(seen.back().answered, 2);
  EXPECT_EQ(seen.back().sent_bytes, 16 << 20);
  for (size_t i = 0; i < seen.size(); ++i) {
    EXPECT_EQ(seen[i].total_bytes, 16 << 20);
    if (i > 0) {
      EXPECT_GE(seen[i].sent_bytes, seen[i - 1].sent_bytes);
    }
  }
}

TEST_F(SessionTest, AChecksumIsAcceptedByTheServer) {
  ClientOptions options;
  options.checksum = true;
  const Session session = Bind(Request("level", kLevel, {"a"}, 2, 1 << 20), options);
  const auto weight = Weight(2 << 20, 1);
  EXPECT_TRUE(session.CalcMask({MakeTensor<float>("a", {2, 1 << 20}, weight)})[0].ok());
}

TEST_F(SessionTest, ReturnsTheCallersMemoryWhenTheDeadlinePasses) {
  const Session session = Bind(Request("level", kLevel, {"a"}, 1 << 10, 32 << 10));
  const std::vector<float> original(32 << 20, 1.0f);
  for (const int milliseconds : {0, 1, 5, 20, 40}) {
    // Freed as soon as the call returns: a slice that is still in flight would be a use after free.
    auto weight = std::make_unique<std::vector<float>>(original);
    CallOptions options;
    options.timeout = absl::Milliseconds(milliseconds);
    const auto masks =
        session.CalcMask({MakeTensor<float>("a", {1 << 10, 32 << 10}, *weight)}, options);
    weight.reset();
    if (!masks[0].ok()) {
      EXPECT_EQ(masks[0].status().code(), absl::StatusCode::kDeadlineExceeded);
    }
  }
  EXPECT_TRUE(session.KeepAlive().ok());
}

TEST_F(SessionTest, ManyThreadsShareASession) {
  std::vector<std::string> names;
  for (int i = 0; i < 8; ++i) names.push_back(absl::StrCat("layer", i));
  const Session session = Bind(Request("level", kLevel, names, 100, 3000));
  std::vector<std::thread> threads;
  std::vector<int64_t> pruned(8);
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      const auto weight = Weight(300000, i);
      const auto masks = session.CalcMask({MakeTensor<float>(names[i], {100, 3000}, weight)});
      if (masks[0].ok()) pruned[i] = masks[0]->pruned();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(pruned, ::testing::Each(240000));
}

TEST_F(SessionTest, ATensorThatNeverFitsIsRefusedAtOnce) {
  server::ServerOptions options;
  options.memory_budget = 8 << 20;
  const auto small = StartServer(0, options);
  const auto session =
      Connect(AddressOf(*small)).BindModel(Request("level", kLevel, {"big"}, 4, 1 << 20));
  ASSERT_TRUE(session.ok()) << session.status();
  const auto weight = Weight(4 << 20, 1);
  const auto masks = session->CalcMask({MakeTensor<float>("big", {4, 1 << 20}, weight)});
  EXPECT_EQ(masks[0].status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(SessionTest, CallsThatDoNotFitTogetherTakeTurns) {
  server::ServerOptions options;
  options.memory_budget = 24 << 20;
  const auto small = StartServer(0, options);
  std::vector<std::thread> threads;
  std::vector<absl::Status> statuses(6);
  for (int i = 0; i < 6; ++i) {
    threads.emplace_back([&, i] {
      const auto session =
          Connect(AddressOf(*small)).BindModel(Request("level", kLevel, {"a", "b"}, 4, 512 << 10));
      if (!session.ok()) {
        statuses[i] = session.status();
        return;
      }
      const auto weight = Weight(2 << 20, i);
      for (const auto& mask : session->CalcMask({MakeTensor<float>("a", {4, 512 << 10}, weight),
                                                 MakeTensor<float>("b", {4, 512 << 10}, weight)})) {
        statuses[i].Update(mask.status());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& status : statuses) EXPECT_TRUE(status.ok()) << status;
}

}  // namespace
}  // namespace nni_compression
