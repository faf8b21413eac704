// Sessions through a real server: opening, retrying, sharing, ending, draining.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/testing/test_server.h"

namespace nni_compression::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class SessionsTest : public ::testing::Test {
 protected:
  SessionsTest() : server_(Options()) {}

  static server::ServerOptions Options() {
    server::ServerOptions options;
    options.authenticator = TenantFromMetadata();
    options.sessions.default_lease = absl::Minutes(5);
    return options;
  }

  v1::CompressionService::Stub& stub() { return server_.stub(); }

  grpc::Status TryBind(const v1::BindModelRequest& request, v1::BindModelResponse* response,
                       const std::string& tenant = "default") {
    grpc::ClientContext context;
    context.AddMetadata("tenant", tenant);
    return stub().BindModel(&context, request, response);
  }

  const v1::BindModelRequest level_ = BindRequest("level", {{"sparsity", 0.5}}, {{"fc", {4}}});
  const std::string weight_ = Bytes({1, 4, 3, 2});
  TestServer server_;
};

TEST_F(SessionsTest, BindModelAnswersThePlanTheLeaseAndWhatIsStale) {
  v1::BindModelResponse response;
  ASSERT_TRUE(TryBind(level_, &response).ok());
  EXPECT_EQ(response.session_id().size(), 32u);
  EXPECT_EQ(response.lease().seconds(), 300);
  EXPECT_THAT(response.stale_layers(), ElementsAre("fc"));
  ASSERT_EQ(response.plan().layers_size(), 1);
  EXPECT_TRUE(response.plan().layers(0).compressed());
  ASSERT_EQ(response.plan().rules_size(), 1);
  EXPECT_EQ(response.plan().rules(0).refresh(), v1::REFRESH_ONCE);
  EXPECT_EQ(response.plan().rules(0).options().fields().at("sparsity").number_value(), 0.5);
  EXPECT_FALSE(response.plan().needs_update_epoch());
}

TEST_F(SessionsTest, ARetriedBindModelGetsTheSameSession) {
  v1::BindModelRequest request = level_;
  request.set_request_id("r1");
  (*request.mutable_labels())["a"] = "1";
  (*request.mutable_labels())["b"] = "2";
  v1::BindModelResponse first, retry;
  ASSERT_TRUE(TryBind(request, &first).ok());
  ASSERT_TRUE(TryBind(request, &retry).ok());
  EXPECT_EQ(first.session_id(), retry.session_id());
  EXPECT_EQ(server_.server().live_sessions(), 1);
  request.set_epoch(1);
  EXPECT_EQ(TryBind(request, &retry).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST(SmallServerTest, ARetriedBindModelNeedsNoMemoryOfItsOwn) {
  server::ServerOptions options;
  options.memory_budget = 1 << 20;
  TestServer server(options);
  v1::BindModelRequest request =
      BindRequest("level", {{"sparsity", 0.5}}, {{"fc", {5 << 20}}});  // its mask: 640 KiB
  request.set_request_id("r1");
  v1::BindModelResponse first, retry;
  for (v1::BindModelResponse* response : {&first, &retry}) {
    grpc::ClientContext context;
    const grpc::Status status = server.stub().BindModel(&context, request, response);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  EXPECT_EQ(first.session_id(), retry.session_id());
}

TEST_F(SessionsTest, AGivenMaskStands) {
  v1::BindModelRequest request = level_;
  v1::LayerMask* mask = request.add_masks();
  mask->set_layer("fc");
  mask->set_bits(std::string(1, 0b0111));
  v1::BindModelResponse response;
  ASSERT_TRUE(TryBind(request, &response).ok());
  v1::GetSessionResponse session;
  ASSERT_TRUE(GetSession(stub(), response.session_id(), &session).ok());
  EXPECT_EQ(session.session().layers(0).achieved_sparsity(), 0.25);

  request.mutable_masks(0)->set_bits("\xff");
  const grpc::Status status = TryBind(request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("masks[0]"));
}

TEST_F(SessionsTest, GivenNumbersAreRememberedAndWrongOnesNamed) {
  v1::BindModelRequest request = BindRequest("naive", {}, {{"fc", {4}}});
  v1::LayerMemory* layer = request.add_memory();
  layer->set_layer("fc");
  v1::Memory* scale = layer->add_memory();
  scale->set_name("scale");
  scale->add_values(2.0f);
  const std::string id = Bind(stub(), request);
  v1::QuantizeWeightResponse response;
  ASSERT_TRUE(
      RunCall<QuantizeStream>(
          stub(), QuantizeMessage().Open(id).Tensor(Header(0, "fc", {4}), weight_), &response)
          .ok());
  ASSERT_EQ(response.results_size(), 1);
  EXPECT_EQ(response.results(0).parameters().scale(0), 2.0f);
  ASSERT_EQ(response.results(0).memory_size(), 1);
  EXPECT_EQ(response.results(0).memory(0).values(0), 2.0f);

  v1::BindModelResponse refused;
  scale->set_values(0, -1.0f);
  EXPECT_THAT(TryBind(request, &refused).error_message(),
              HasSubstr("memory[0]: \"scale\" of layer \"fc\" is [-1]"));
  layer->set_layer("fd");
  EXPECT_THAT(TryBind(request, &refused).error_message(), HasSubstr("memory[0]: "));
  EXPECT_EQ(server_.server().live_sessions(), 1);
}

TEST_F(SessionsTest, BadRequestsNameTheFieldAndLeaveNothingBehind) {
  const int64_t before = server_.server().memory_reserved();
  const auto message = [&](const std::function<void(v1::BindModelRequest&)>& change) {
    v1::BindModelRequest request = level_;
    change(request);
    v1::BindModelResponse response;
    const grpc::Status status = TryBind(request, &response);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << status.error_message();
    return status.error_message();
  };
  EXPECT_THAT(message([](auto& r) { r.set_algorithm("levle"); }), HasSubstr("level"));
  EXPECT_THAT(message([](auto& r) { r.set_request_id(std::string(129, 'x')); }),
              HasSubstr("request_id has 129 bytes"));
  EXPECT_THAT(message([](auto& r) { r.mutable_lease()->set_seconds(-1); }),
              HasSubstr("lease is -1"));
  EXPECT_THAT(message([](auto& r) { r.mutable_layers(0)->set_dtype(v1::DATA_TYPE_UNSPECIFIED); }),
              HasSubstr("layers[0].dtype is 0"));
  EXPECT_THAT(message([](auto& r) { r.mutable_layers(0)->set_name(std::string("a\0b", 3)); }),
              HasSubstr("layers[0].name"));
  EXPECT_THAT(message([](auto& r) { r.mutable_layers(0)->set_name("a\nb"); }),
              HasSubstr("control character"));
  EXPECT_THAT(message([](auto& r) { r.mutable_layers(0)->set_name(std::string(100 << 10, 'n')); }),
              HasSubstr("102400 bytes"));
  EXPECT_THAT(message([](auto& r) { (*r.mutable_labels())["k"] = std::string(257, 'v'); }),
              HasSubstr("labels['k'] has 257 bytes"));
  EXPECT_THAT(message([](auto& r) {
                (*r.mutable_config_list(0)->mutable_fields())["sparsity"].set_number_value(1.3);
              }),
              HasSubstr("config_list[0].sparsity is 1.3"));
  EXPECT_EQ(server_.server().live_sessions(), 0);
  EXPECT_TRUE(server_.MemoryReturnsTo(before));
}

TEST_F(SessionsTest, ASessionWhosePlanDoesNotFitIntoAReplyIsNotBound) {
  std::map<std::string, std::vector<int64_t>> layers;
  for (int i = 0; i < 16000; ++i) {
    layers[absl::StrCat(std::string(120, 'l'), 100000 + i)] = {1};
  }
  const v1::BindModelRequest request = BindRequest("level", {{"sparsity", 0.5}}, layers);
  ASSERT_LT(request.ByteSizeLong(), 4u << 20);
  v1::BindModelResponse response;
  const grpc::Status status = TryBind(request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("the reply has"));

  // Nor is one of its retries told of the session that is about to go.
  v1::BindModelRequest repeated = request;
  repeated.set_request_id("once");
  std::vector<std::thread> retries;
  for (int i = 0; i < 8; ++i) {
    retries.emplace_back([&] {
      v1::BindModelResponse ignored;
      EXPECT_FALSE(TryBind(repeated, &ignored).ok());
    });
  }
  for (std::thread& retry : retries) retry.join();
  grpc::ClientContext context;
  context.AddMetadata("tenant", "default");
  v1::ListSessionsResponse sessions;
  ASSERT_TRUE(stub().ListSessions(&context, {}, &sessions).ok());
  EXPECT_EQ(sessions.sessions_size(), 0);
  EXPECT_TRUE(server_.MemoryReturnsTo(0));
}

TEST_F(SessionsTest, UnknownClosedExpiredAndForeignSessionsAreNotFound) {
  EXPECT_EQ(KeepAlive(stub(), "unknown").error_code(), grpc::StatusCode::NOT_FOUND);

  const std::string closed = Bind(stub(), level_);
  ASSERT_TRUE(CloseSession(stub(), closed).ok());
  EXPECT_TRUE(CloseSession(stub(), closed).ok()) << "closing again succeeds";
  EXPECT_EQ(KeepAlive(stub(), closed).error_code(), grpc::StatusCode::NOT_FOUND);

  const std::string expired = Bind(stub(), level_);
  server_.Advance(absl::Minutes(5));
  EXPECT_EQ(KeepAlive(stub(), expired).error_code(), grpc::StatusCode::NOT_FOUND);

  v1::BindModelResponse foreign;
  ASSERT_TRUE(TryBind(level_, &foreign, "other").ok());
  EXPECT_EQ(KeepAlive(stub(), foreign.session_id()).error_code(), grpc::StatusCode::NOT_FOUND);
  v1::GetSessionResponse report;
  EXPECT_EQ(GetSession(stub(), foreign.session_id(), &report).error_code(),
            grpc::StatusCode::NOT_FOUND);
  v1::CalcMaskResponse masks;
  for (const std::string& id : {std::string("unknown"), closed, expired, foreign.session_id()}) {
    EXPECT_EQ(CalcMask(stub(), MaskMessage().Open(id).Tensor(Header(0, "fc", {4}), weight_), &masks)
                  .error_code(),
              grpc::StatusCode::NOT_FOUND);
  }
}

TEST_F(SessionsTest, WithoutCredentialsNoMethodAnswers) {
  const auto code = [](const grpc::Status& status) { return status.error_code(); };
  {
    v1::BindModelResponse response;
    EXPECT_EQ(code(TryBind(level_, &response, "nobody")), grpc::StatusCode::UNAUTHENTICATED);
  }
  {
    grpc::ClientContext context;
    context.AddMetadata("tenant", "nobody");
    grpc::health::v1::HealthCheckResponse response;
    EXPECT_EQ(code(server_.health().Check(&context, {}, &response)),
              grpc::StatusCode::UNAUTHENTICATED);
  }
  grpc::ClientContext context;
  context.AddMetadata("tenant", "nobody");
  const auto stream = stub().CalcMask(&context);
  EXPECT_EQ(code(stream->Finish()), grpc::StatusCode::UNAUTHENTICATED);
}

TEST_F(SessionsTest, ReportedResultsAreShown) {
  const std::string id = Bind(stub(), level_);
  const auto results = [&] {
    v1::GetSessionResponse response;
    EXPECT_TRUE(GetSession(stub(), id, &response).ok());
    const auto& shown = response.session().results();
    return std::map<std::string, double>(shown.begin(), shown.end());
  };
  for (int i = 0; i < 2; ++i) {  // a retry
    ASSERT_TRUE(ReportResults(stub(), id, {{"accuracy", 0.9}, {"loss", 1}}).ok());
  }
  ASSERT_TRUE(ReportResults(stub(), id, {{"accuracy", 0.95}}).ok());
  EXPECT_EQ(results(), (std::map<std::string, double>{{"accuracy", 0.95}, {"loss", 1}}));

  const auto error = [&](const std::map<std::string, double>& reported) {
    const grpc::Status status = ReportResults(stub(), id, reported);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    return status.error_message();
  };
  EXPECT_EQ(error({{"accuracy", 1}, {"loss", std::nan("")}}),
            "results['loss'] is nan; it must be finite");
  EXPECT_THAT(error({{"", 1}}), HasSubstr("results['']: the name"));
  EXPECT_THAT(error({{std::string(65, 'a'), 1}}), HasSubstr("64"));
  EXPECT_THAT(error({{"a\nb", 1}}), HasSubstr("the name"));
  std::map<std::string, double> many = {{"accuracy", 0}};
  for (int i = 0; i < 63; ++i) many[absl::StrCat("result ", i)] = i;
  EXPECT_THAT(error(many), HasSubstr("at most 64"));
  EXPECT_EQ(results().size(), 2u) << "nothing has changed";
  many.erase("result 62");
  ASSERT_TRUE(ReportResults(stub(), id, many).ok());
  EXPECT_EQ(results().size(), 64u);
  EXPECT_EQ(results()["accuracy"], 0);

  EXPECT_EQ(ReportResults(stub(), "unknown", {{"a", 1}}).error_code(), grpc::StatusCode::NOT_FOUND);
  ASSERT_TRUE(CloseSession(stub(), id).ok());
  EXPECT_EQ(ReportResults(stub(), id, {{"accuracy", 1}}).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(results().size(), 64u) << "kept with the last report";
}

TEST_F(SessionsTest, AConfigListIsShownAsBoundUnlessItIsLarge) {
  const auto shown = [&](size_t bytes) {
    v1::BindModelRequest request = BindRequest("custom_pruner", {}, {{"fc", {4}}});
    auto& rule = *request.mutable_config_list(0)->mutable_fields();
    auto& options = *rule["options"].mutable_struct_value()->mutable_fields();
    options["text"].set_string_value(std::string(bytes, 'x'));
    const std::string id = Bind(stub(), request);
    v1::GetSessionResponse live, ended;
    EXPECT_TRUE(GetSession(stub(), id, &live).ok());
    EXPECT_TRUE(CloseSession(stub(), id).ok());
    EXPECT_TRUE(GetSession(stub(), id, &ended).ok());
    EXPECT_EQ(live.session().config_list_size(), ended.session().config_list_size());
    for (const auto& copy : ended.session().config_list()) {
      EXPECT_EQ(copy.fields().at("options").struct_value().fields().at("text").string_value(),
                std::string(bytes, 'x'));
    }
    return ended.session().config_list_size();
  };
  EXPECT_EQ(shown(60 << 10), 1);
  EXPECT_EQ(shown(70 << 10), 0);
}

TEST_F(SessionsTest, ResultsAreCountedBeforeTheyAreKept) {
  const std::string id = Bind(stub(), level_);
  const int64_t before = server_.server().memory_reserved();
  std::map<std::string, double> results;
  for (int i = 0; i < 64; ++i) results[absl::StrCat(std::string(60, 'a'), i)] = i;
  ASSERT_TRUE(ReportResults(stub(), id, results).ok());
  EXPECT_TRUE(
      Eventually([&] { return server_.server().memory_reserved() >= before + 64 * (64 + 64); }));
  const int64_t reported = server_.server().memory_reserved();
  ASSERT_TRUE(ReportResults(stub(), id, results).ok());
  EXPECT_TRUE(server_.MemoryReturnsTo(reported)) << "the same ones cost nothing";
}

TEST_F(SessionsTest, KeepAliveRenewsTheLease) {
  const std::string id = Bind(stub(), level_);
  for (int i = 0; i < 3; ++i) {
    server_.Advance(absl::Minutes(4));
    ASSERT_TRUE(KeepAlive(stub(), id).ok());
  }
  server_.Advance(absl::Minutes(5));
  EXPECT_EQ(KeepAlive(stub(), id).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(SessionsTest, AnExpiredSessionsMemoryGoesBack) {
  const int64_t before = server_.server().memory_reserved();
  const std::string id = Bind(stub(), level_);
  const int64_t bound = server_.server().memory_reserved();
  EXPECT_GT(bound, before);
  server_.Advance(absl::Minutes(5));
  EXPECT_TRUE(Eventually([&] { return server_.server().memory_reserved() < bound; }));
  EXPECT_EQ(server_.server().live_sessions(), 0);
  v1::GetSessionResponse report;
  EXPECT_TRUE(GetSession(stub(), id, &report).ok());
  EXPECT_GT(server_.server().memory_reserved(), before) << "the report is kept";
  server_.Advance(absl::Hours(1));
  EXPECT_TRUE(server_.MemoryReturnsTo(before));
}

TEST_F(SessionsTest, AReportCanBeHadAfterTheSessionClosed) {
  const std::string id = Bind(stub(), level_);
  v1::CalcMaskResponse masks;
  ASSERT_TRUE(
      CalcMask(stub(), MaskMessage().Open(id).Tensor(Header(0, "fc", {4}), weight_), &masks).ok());
  ASSERT_TRUE(CloseSession(stub(), id).ok());
  v1::GetSessionResponse response;
  ASSERT_TRUE(GetSession(stub(), id, &response).ok());
  EXPECT_EQ(response.session().state(), v1::SESSION_STATE_CLOSED);
  EXPECT_EQ(response.session().achieved_sparsity(), 0.5);
  ASSERT_EQ(response.session().layers_size(), 1);
  EXPECT_EQ(response.session().layers(0).achieved_sparsity(), 0.5);
  EXPECT_EQ(response.session().received_bytes(), 16u);
  EXPECT_EQ(response.session().sent_bytes(), 1u);
  EXPECT_FALSE(response.has_plan());
  server_.Advance(absl::Hours(1));
  EXPECT_EQ(GetSession(stub(), id, &response).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(SessionsTest, ListsSessionsByLabelWithTheirProgress) {
  v1::BindModelRequest request = level_;
  (*request.mutable_labels())["run"] = "7";
  const std::string id = Bind(stub(), request);
  Bind(stub(), level_);
  v1::CalcMaskResponse masks;
  ASSERT_TRUE(
      CalcMask(stub(), MaskMessage().Open(id).Tensor(Header(0, "fc", {4}), weight_), &masks).ok());
  v1::ListSessionsRequest list;
  v1::ListSessionsResponse response;
  (*list.mutable_labels())["run"] = "7";
  grpc::ClientContext context;
  ASSERT_TRUE(stub().ListSessions(&context, list, &response).ok());
  ASSERT_EQ(response.sessions_size(), 1);
  EXPECT_EQ(response.sessions(0).id(), id);
  EXPECT_EQ(response.sessions(0).achieved_sparsity(), 0.5);
  EXPECT_EQ(response.sessions(0).state(), v1::SESSION_STATE_ACTIVE);
  EXPECT_EQ(response.sessions(0).layers_size(), 0);

  list.set_page_size(1001);
  grpc::ClientContext another;
  EXPECT_EQ(stub().ListSessions(&another, list, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(SessionsTest, ListsTheAlgorithmsWithTheirOptions) {
  v1::ListAlgorithmsResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(stub().ListAlgorithms(&context, {}, &response).ok());
  std::vector<std::string> names;
  for (const v1::Algorithm& algorithm : response.algorithms()) names.push_back(algorithm.name());
  EXPECT_THAT(names, ::testing::IsSupersetOf({"agp", "dorefa", "level", "naive", "qat"}));
  EXPECT_FALSE(response.server_version().empty());
}

TEST_F(SessionsTest, ARepeatedEpochChangesNothing) {
  const std::string id =
      Bind(stub(), BindRequest("agp", {{"final_sparsity", 0.75}, {"end_epoch", 2}}, {{"fc", {4}}}));
  v1::UpdateEpochResponse epoch;
  ASSERT_TRUE(UpdateEpoch(stub(), id, 2, &epoch).ok());
  EXPECT_THAT(epoch.stale_layers(), ElementsAre("fc"));
  v1::CalcMaskResponse first, again;
  const MaskMessage message = MaskMessage().Open(id).Tensor(Header(0, "fc", {4}), weight_);
  ASSERT_TRUE(CalcMask(stub(), message, &first).ok());
  ASSERT_TRUE(UpdateEpoch(stub(), id, 2, &epoch).ok());
  EXPECT_EQ(epoch.epoch(), 2);
  EXPECT_EQ(epoch.stale_layers_size(), 0);
  ASSERT_TRUE(CalcMask(stub(), message, &again).ok());
  EXPECT_EQ(PayloadOf(first, 0), PayloadOf(again, 0));
  EXPECT_EQ(UpdateEpoch(stub(), id, -1, &epoch).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(SessionsTest, RanksOfOneSessionGetTheSameMask) {
  const std::string id = Bind(stub(), level_);
  std::vector<v1::CalcMaskResponse> masks(4);
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < 4; ++rank) {
    ranks.emplace_back([&, rank] {
      std::vector<float> weight = {1, 2, 3, 4};
      std::rotate(weight.begin(), weight.begin() + rank, weight.end());  // each its own
      const auto own = server_.NewStub();
      EXPECT_TRUE(CalcMask(*own, MaskMessage().Open(id).Tensor(Header(0, "fc", {4}), Bytes(weight)),
                           &masks[rank])
                      .ok());
    });
  }
  for (std::thread& rank : ranks) rank.join();
  for (const auto& mask : masks) EXPECT_EQ(PayloadOf(mask, 0), PayloadOf(masks[0], 0));
}

TEST_F(SessionsTest, SessionsDoNotWaitForOneAnother) {
  const std::string slow = Bind(stub(), BindRequest("slow", {}, {{"fc", {4}}}));
  const std::string quick = Bind(stub(), level_);
  MaskStream computing(stub());
  computing.Send(MaskMessage().Open(slow).Tensor(Header(0, "fc", {4}), weight_));
  server_.slow().computing.Wait();
  v1::CalcMaskResponse masks;
  EXPECT_TRUE(
      CalcMask(stub(), MaskMessage().Open(quick).Tensor(Header(0, "fc", {4}), weight_), &masks)
          .ok());
  server_.slow().release.Set();
}

TEST_F(SessionsTest, CallsOfASessionAreAppliedInTheirOrder) {
  const std::string id = Bind(stub(), BindRequest("slow", {}, {{"fc", {4}}}));
  MaskStream computing(stub());
  computing.Send(MaskMessage().Open(id).Tensor(Header(0, "fc", {4}), weight_));
  server_.slow().computing.Wait();
  std::thread later([&] {
    v1::UpdateEpochResponse epoch;
    EXPECT_TRUE(UpdateEpoch(stub(), id, 5, &epoch).ok());
  });
  server_.slow().release.Set();
  v1::CalcMaskResponse masks;
  ASSERT_TRUE(computing.Read(&masks));
  EXPECT_EQ(masks.results(0).epoch(), 0) << "the mask was asked for first";
  later.join();
}

TEST_F(SessionsTest, ASessionClosedWhileItComputesEndsItsCalls) {
  const std::string id = Bind(stub(), BindRequest("slow", {}, {{"a", {4}}, {"b", {4}}}));
  const int64_t before = server_.server().memory_reserved();
  MaskStream stream(stub());
  stream.Send(MaskMessage().Open(id).Tensor(Header(0, "a", {4}), weight_));
  server_.slow().computing.Wait();
  ASSERT_TRUE(CloseSession(stub(), id).ok());
  stream.Send(MaskMessage().Tensor(Header(1, "b", {4}), weight_));
  server_.slow().release.Set();
  stream.ReadAll();
  EXPECT_EQ(stream.Finish().error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(Eventually([&] { return server_.server().memory_reserved() < before; }));
}

TEST_F(SessionsTest, HealthSaysServingAndKnowsItsServices) {
  const auto check = [&](const std::string& service) {
    grpc::ClientContext context;
    grpc::health::v1::HealthCheckRequest request;
    grpc::health::v1::HealthCheckResponse response;
    request.set_service(service);
    const grpc::Status status = server_.health().Check(&context, request, &response);
    return status.ok() ? static_cast<int>(response.status())
                       : -static_cast<int>(status.error_code());
  };
  using grpc::health::v1::HealthCheckResponse;
  EXPECT_EQ(check(""), HealthCheckResponse::SERVING);
  EXPECT_EQ(check("nni.compression.v1.CompressionService"), HealthCheckResponse::SERVING);
  EXPECT_EQ(check("else"), -grpc::StatusCode::NOT_FOUND);
}

TEST_F(SessionsTest, DrainingLetsRunningCallsFinishAndRefusesNewOnes) {
  using grpc::health::v1::HealthCheckResponse;
  const std::string id = Bind(stub(), BindRequest("slow", {}, {{"fc", {4}}}));
  grpc::ClientContext context;
  const auto watch = server_.health().Watch(&context, {});
  HealthCheckResponse health;
  ASSERT_TRUE(watch->Read(&health));
  EXPECT_EQ(health.status(), HealthCheckResponse::SERVING);

  MaskStream running(stub());
  running.Send(MaskMessage().Open(id).Tensor(Header(0, "fc", {4}), weight_));
  server_.slow().computing.Wait();
  std::thread drain([&] { server_.server().Drain(absl::Seconds(30)); });
  ASSERT_TRUE(watch->Read(&health));
  EXPECT_EQ(health.status(), HealthCheckResponse::NOT_SERVING);
  EXPECT_TRUE(Eventually(
      [&] { return KeepAlive(stub(), id).error_code() == grpc::StatusCode::UNAVAILABLE; }));

  server_.slow().release.Set();
  running.HalfClose();
  EXPECT_EQ(running.ReadAll().results_size(), 1);
  EXPECT_TRUE(running.Finish().ok());
  drain.join();
  EXPECT_FALSE(watch->Read(&health));
  EXPECT_EQ(watch->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(SessionsTest, DrainingCancelsWhatDoesNotFinishInTime) {
  const std::string id = Bind(stub(), level_);
  MaskStream idle(stub());
  idle.Send(MaskMessage().Open(id).Tensor(Header(0, "fc", {4}), weight_));
  v1::CalcMaskResponse response;
  ASSERT_TRUE(idle.Read(&response));
  server_.server().Drain(absl::Milliseconds(10));
  EXPECT_FALSE(idle.Read(&response));
  EXPECT_FALSE(idle.Finish().ok());
}

TEST(ServerOptionsTest, BadOptionsAndAddressesAreRefused) {
  server::ServerOptions options;
  options.listen = "0.0.0.0:0";
  EXPECT_EQ(server::Server::Start(options).status().code(), absl::StatusCode::kInvalidArgument);
  options.listen = "127.0.0.1:0";
  options.max_calls = 0;
  EXPECT_EQ(server::Server::Start(options).status(),
            absl::InvalidArgumentError("max_calls is 0; it must be at least 1"));
  TestServer running;
  options.max_calls = 1;
  options.listen = "127.0.0.1:" + std::to_string(running.server().port());
  EXPECT_EQ(server::Server::Start(options).status().code(), absl::StatusCode::kUnavailable);
}

TEST(ServerOptionsTest, MoreCallsThanAllowedAreRefusedWithATimeToWait) {
  server::ServerOptions options;
  options.max_calls = 1;
  TestServer server(options);
  const std::string id =
      Bind(server.stub(), BindRequest("level", {{"sparsity", 0.5}}, {{"a", {4}}}));
  // BindModel's call counts until its reply has left, which its caller may see a little before.
  std::unique_ptr<MaskStream> open;
  v1::CalcMaskResponse response;
  ASSERT_TRUE(Eventually([&] {
    open = std::make_unique<MaskStream>(server.stub());
    open->Send(MaskMessage().Open(id).Tensor(Header(0, "a", {4}), Bytes({1, 2, 3, 4})));
    return open->Read(&response);
  }));
  grpc::ClientContext context;
  v1::ListAlgorithmsResponse algorithms;
  const grpc::Status status = server.stub().ListAlgorithms(&context, {}, &algorithms);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
}

}  // namespace
}  // namespace nni_compression::testing
