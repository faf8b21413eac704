// AddStatistics through a real server.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "server/tensors/weight_cache.h"
#include "tests/testing/test_server.h"

namespace nni_compression::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class StatisticsTest : public ::testing::Test {
 protected:
  v1::CompressionService::Stub& stub() { return server_.stub(); }

  // A session of `movement` that prunes half of both layers, of four weights, at step 1.
  std::string BindMovement() {
    v1::BindModelRequest request =
        BindRequest("movement", {{"final_sparsity", 0.5}, {"end_step", 1}, {"frequency", 1}},
                    {{"a", {4}}, {"b", {4}}});
    (*request.mutable_config_list(0)->mutable_fields())["schedule_unit"].set_string_value("step");
    grpc::ClientContext context;
    context.AddMetadata("nni-route", "test");
    EXPECT_TRUE(stub().BindModel(&context, request, &bound_).ok());
    return bound_.session_id();
  }

  static v1::TensorHeader Part(uint32_t index, const std::string& layer, uint64_t sequence) {
    v1::TensorHeader header = Header(index, layer, {4}, v1::TENSOR_ROLE_STATISTIC);
    header.mutable_part()->set_kind(v1::STATISTIC_KIND_WEIGHT_GRADIENT);
    header.mutable_part()->set_sequence(sequence);
    header.mutable_part()->set_count(10);
    return header;
  }

  v1::AddStatisticsResponse Add(const StatisticsMessage& message) {
    v1::AddStatisticsResponse response;
    const grpc::Status status = RunCall<StatisticsStream>(stub(), message, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }

  v1::Session Describe(const std::string& id) {
    v1::GetSessionRequest request;
    request.set_session_id(id);
    grpc::ClientContext context;
    context.AddMetadata("nni-route", "test");
    v1::GetSessionResponse response;
    EXPECT_TRUE(stub().GetSession(&context, request, &response).ok());
    return response.session();
  }

  // The packed mask of a layer at step 1, or the error's text.
  std::string MaskAtStep(const std::string& id, const std::string& layer) {
    StepMessage step;
    step.Open(id).proto().mutable_open()->set_step(1);
    v1::StepResponse stepped;
    EXPECT_TRUE(Step(stub(), step, &stepped).ok());
    v1::CalcMaskResponse reply;
    const auto message = MaskMessage().Open(id).Tensor(Header(0, layer, {4}), Bytes({1, 1, 1, 1}));
    EXPECT_TRUE(CalcMask(stub(), message, &reply).ok());
    if (reply.results(0).has_error()) return reply.results(0).error().message();
    return PayloadOf(reply, reply.headers(0).index());
  }

  TestServer server_;
  v1::BindModelResponse bound_;
};

TEST_F(StatisticsTest, PartsAddUpToTheMask) {
  const std::string id = BindMovement();
  ASSERT_EQ(bound_.plan().layers_size(), 2);
  ASSERT_EQ(bound_.plan().layers(0).statistics_size(), 1);
  EXPECT_EQ(bound_.plan().layers(0).statistics(0).kind(), v1::STATISTIC_KIND_WEIGHT_GRADIENT);
  EXPECT_THAT(bound_.plan().layers(0).statistics(0).shape(), ElementsAre(4));

  auto response = Add(StatisticsMessage()
                          .Open(id)
                          .Tensor(Part(5, "a", 1), Bytes({1, 2, 3, 4}))
                          .Tensor(Part(6, "a", 2), Bytes({9, -9, 0, 0})));
  ASSERT_EQ(response.results_size(), 2);
  EXPECT_EQ(response.results(0).answers(), 5u);
  EXPECT_EQ(response.results(0).layer(), "a");
  EXPECT_EQ(response.results(1).count(), 20u);
  // [10, -7, 3, 4]: the largest sums go first.
  EXPECT_EQ(MaskAtStep(id, "a"), std::string(1, 0b0110));
  EXPECT_THAT(MaskAtStep(id, "b"), HasSubstr("has no weight_gradient yet"));
}

TEST_F(StatisticsTest, ARetryCountsOnceAndTheReportHasWhatWasCounted) {
  const std::string id = BindMovement();
  const auto message = StatisticsMessage().Open(id).Tensor(Part(0, "a", 7), Bytes({1, 2, 3, 4}));
  EXPECT_FALSE(Add(message).results(0).known());
  const v1::Session before = Describe(id);
  const auto again = Add(message);
  EXPECT_TRUE(again.results(0).known());
  EXPECT_EQ(again.results(0).count(), 10u);
  const v1::Session after = Describe(id);
  ASSERT_EQ(after.layers(0).statistics_size(), 1);
  EXPECT_EQ(after.layers(1).statistics_size(), 0);
  const v1::StatisticReport& report = after.layers(0).statistics(0);
  EXPECT_EQ(report.kind(), v1::STATISTIC_KIND_WEIGHT_GRADIENT);
  EXPECT_GE(report.bytes(), 32u);
  ASSERT_EQ(report.sources_size(), 1);
  EXPECT_EQ(report.sources(0).sequence(), 7u);
  EXPECT_EQ(report.sources(0).count(), 10u);
  server::TensorDigest digest(Part(0, "a", 7));
  const std::string bytes = Bytes({1, 2, 3, 4});
  digest.Add(reinterpret_cast<const uint8_t*>(bytes.data()), static_cast<int64_t>(bytes.size()));
  EXPECT_EQ(report.sources(0).digest(), digest.Finish());
  EXPECT_EQ(after.state_bytes(), before.state_bytes());
}

TEST_F(StatisticsTest, ABadPartIsAnsweredAndTheOthersCount) {
  const std::string id = BindMovement();
  struct Bad {
    std::string message;
    std::function<void(v1::TensorHeader&)> change;
  };
  const std::vector<Bad> bad = {
      {"part.kind of tensor 1 ('b') is 0; it must be in [1, 14]",
       [](auto& header) { header.clear_part(); }},
      {"is sent the statistic squared_gradient; config_list[0] uses weight_gradient",
       [](auto& header) {
         header.mutable_part()->set_kind(v1::STATISTIC_KIND_SQUARED_GRADIENT);
         header.mutable_shape()->Set(0, 1);
         header.set_byte_length(4);
       }},
      {"has source 64; it must be in [0, 63]",
       [](auto& header) { header.mutable_part()->set_source(64); }},
      {"has sequence 0; it must be in [1, 9007199254740992]",
       [](auto& header) { header.mutable_part()->set_sequence(0); }},
      {"has count 0; it must be in [1, ",
       [](auto& header) { header.mutable_part()->set_count(0); }},
      {"has count 9223372036854775807; it must be in [1, ",
       [](auto& header) { header.mutable_part()->set_count(~uint64_t{0}); }},
      {"has shape [5]; it must be [4]", [](auto& header) { header.mutable_shape()->Set(0, 5); }},
      {"it must be float32 or float64",
       [](auto& header) { header.set_dtype(v1::DATA_TYPE_INT32); }},
      {"role of tensor 1 is 1; it must be TENSOR_ROLE_STATISTIC",
       [](auto& header) { header.set_role(v1::TENSOR_ROLE_WEIGHT); }},
      {"the session has no layer \"c\"", [](auto& header) { header.set_layer("c"); }},
  };
  uint64_t sequence = 0;
  for (const Bad& one : bad) {
    v1::TensorHeader header = Part(1, "b", 1);
    one.change(header);
    const std::string bytes(header.byte_length(), '\0');
    const auto response = Add(StatisticsMessage()
                                  .Open(id)
                                  .Tensor(header, bytes)
                                  .Tensor(Part(0, "a", ++sequence), Bytes({1, 2, 3, 4})));
    ASSERT_EQ(response.results_size(), 2) << one.message;
    for (const v1::StatisticResult& result : response.results()) {
      EXPECT_EQ(result.has_error(), result.answers() == 1) << one.message;
      if (result.has_error()) {
        EXPECT_THAT(result.error().message(), HasSubstr(one.message));
      }
    }
  }
  EXPECT_EQ(Describe(id).layers(1).statistics_size(), 0);
  EXPECT_EQ(Describe(id).layers(0).statistics(0).sources(0).count(), 10 * sequence);
}

TEST_F(StatisticsTest, PartsThatWereAnsweredStayWhenTheCallFailsLater) {
  const std::string id = BindMovement();
  {
    StatisticsStream stream(stub());
    stream.Send(StatisticsMessage().Open(id).Tensor(Part(0, "a", 1), Bytes({1, 2, 3, 4})));
    v1::AddStatisticsResponse reply;
    ASSERT_TRUE(stream.Read(&reply));
    stream.Send(StatisticsMessage().Add(Part(1, "b", 1)).Chunk(1, 8, "gap"));
    stream.HalfClose();
    stream.ReadAll();
    EXPECT_EQ(stream.Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  }
  const v1::Session session = Describe(id);
  EXPECT_EQ(session.layers(0).statistics_size(), 1);
  EXPECT_EQ(session.layers(1).statistics_size(), 0);
}

// Layers that share an input send its statistic once.
TEST_F(StatisticsTest, BytesAreSentOnceWithADigest) {
  const std::string id = BindMovement();
  const std::string bytes = Bytes({1, 2, 3, 4});
  server::TensorDigest digest(Part(0, "a", 1));
  digest.Add(reinterpret_cast<const uint8_t*>(bytes.data()), static_cast<int64_t>(bytes.size()));
  const std::string name = digest.Finish();
  StatisticsStream stream(stub());
  v1::TensorHeader first = Part(0, "a", 1);
  first.set_digest(name);
  stream.Send(StatisticsMessage().Open(id).Add(first));
  v1::AddStatisticsResponse reply;
  ASSERT_TRUE(stream.Read(&reply));
  ASSERT_EQ(reply.answers(0).answer(), v1::TensorAnswer::ANSWER_SEND);
  stream.Send(StatisticsMessage().Chunk(0, 0, bytes).Commit(0, bytes.size()));
  ASSERT_TRUE(stream.Read(&reply));
  ASSERT_EQ(reply.results_size(), 1);
  v1::TensorHeader second = Part(1, "b", 1);
  second.set_digest(name);
  stream.Send(StatisticsMessage().Add(second).Commit(1, bytes.size()));
  stream.HalfClose();
  const auto rest = stream.ReadAll();
  ASSERT_TRUE(stream.Finish().ok());
  ASSERT_EQ(rest.answers_size(), 1);
  EXPECT_EQ(rest.answers(0).answer(), v1::TensorAnswer::ANSWER_HAVE);
  const v1::Session session = Describe(id);
  EXPECT_EQ(session.layers(0).statistics(0).sources(0).digest(),
            session.layers(1).statistics(0).sources(0).digest());
}

TEST_F(StatisticsTest, ADigestThatBytesDoNotHaveCountsNothing) {
  const std::string id = BindMovement();
  v1::TensorHeader header = Part(0, "a", 1);
  header.set_digest(std::string(32, 'd'));
  v1::AddStatisticsResponse response;
  const auto message = StatisticsMessage().Open(id).Tensor(header, Bytes({1, 2, 3, 4}));
  const grpc::Status status = RunCall<StatisticsStream>(stub(), message, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DATA_LOSS);
  EXPECT_EQ(Describe(id).layers(0).statistics_size(), 0);
}

}  // namespace
}  // namespace nni_compression::testing
