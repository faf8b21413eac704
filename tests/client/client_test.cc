// Connecting, binding and the calls without tensors, against a real server.
#include "nni_compression/client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "tests/client/client_test_base.h"

namespace nni_compression {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::UnorderedElementsAre;

class ClientTest : public ClientTestBase {};

TEST_F(ClientTest, ConnectsToTheAddressOfTheEnvironmentByDefault) {
  const auto server = StartServer();
  setenv("NNI_COMPRESSION_SERVER", AddressOf(*server).c_str(), 1);
  const Client client = Connect("");
  unsetenv("NNI_COMPRESSION_SERVER");
  EXPECT_EQ(client.address(), AddressOf(*server));
  EXPECT_TRUE(client.Health().ok());
  EXPECT_EQ(Client::DefaultAddress(), "127.0.0.1:50051");
}

TEST_F(ClientTest, SaysWhatToDoWhenNobodyAnswers) {
  std::string address;
  {
    const auto server = StartServer();
    address = AddressOf(*server);
  }
  ClientOptions options;
  options.connect_timeout = absl::Milliseconds(200);
  const auto client = Client::Connect(address, options);
  EXPECT_EQ(client.status().code(), absl::StatusCode::kUnavailable);
  const std::string message(client.status().message());
  EXPECT_THAT(message, HasSubstr(address));
  EXPECT_THAT(message, HasSubstr("compression_server --listen=" + address));
  EXPECT_THAT(message, HasSubstr("$NNI_COMPRESSION_SERVER"));
  EXPECT_THAT(message, HasSubstr("refused")) << "the reason";
}

TEST_F(ClientTest, SendsNoTokenToAnotherHostInTheOpen) {
  ClientOptions options;
  options.connect_timeout = absl::Milliseconds(1);
  options.token = "secret";
  const absl::Status refused = Client::Connect("server.invalid:50051", options).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(refused.message(), HasSubstr("would be sent to server.invalid:50051"));
  EXPECT_THAT(refused.message(), HasSubstr("$NNI_COMPRESSION_ALLOW_INSECURE_TOKEN=1"));
  EXPECT_THAT(refused.message(), Not(HasSubstr("secret")));
  const auto code = [&] { return Client::Connect("server.invalid:1", options).status().code(); };
  options.allow_insecure_token = true;
  EXPECT_EQ(code(), absl::StatusCode::kUnavailable);
  options.allow_insecure_token.reset();
  setenv("NNI_COMPRESSION_ALLOW_INSECURE_TOKEN", "1", 1);
  EXPECT_EQ(code(), absl::StatusCode::kUnavailable);
  options.allow_insecure_token = false;
  EXPECT_EQ(code(), absl::StatusCode::kInvalidArgument);
  options.allow_insecure_token.reset();
  setenv("NNI_COMPRESSION_ALLOW_INSECURE_TOKEN", "yes", 1);
  EXPECT_EQ(code(), absl::StatusCode::kInvalidArgument);
  unsetenv("NNI_COMPRESSION_ALLOW_INSECURE_TOKEN");
  options.tls = TlsOptions();
  EXPECT_EQ(code(), absl::StatusCode::kUnavailable);
}

TEST_F(ClientTest, GivesUpOnAPortThatAcceptsAndStaysSilent) {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  const auto closer = absl::MakeCleanup([listener] { close(listener); });
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(listen(listener, 8), 0);
  socklen_t size = sizeof(address);
  ASSERT_EQ(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size), 0);
  ClientOptions options;
  options.connect_timeout = absl::Milliseconds(200);
  const auto client = Client::Connect(absl::StrCat("127.0.0.1:", ntohs(address.sin_port)), options);
  EXPECT_EQ(client.status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(ClientTest, AnErrorNamesTheCallAsTheServersLogDoes) {
  const auto server = StartServer();
  const Client client = Connect(AddressOf(*server));
  const auto first = client.GetSession("none").status().GetPayload(kRequestIdPayload);
  const auto second = client.GetSession("none").status().GetPayload(kRequestIdPayload);
  ASSERT_TRUE(first && second);
  EXPECT_EQ(first->size(), 16u);
  EXPECT_NE(*first, *second);
}

TEST_F(ClientTest, ListsAlgorithms) {
  const auto server = StartServer();
  const auto response = Connect(AddressOf(*server)).ListAlgorithms();
  ASSERT_TRUE(response.ok()) << response.status();
  std::vector<std::string> names;
  for (const auto& algorithm : response->algorithms()) names.push_back(algorithm.name());
  EXPECT_THAT(names, ::testing::IsSupersetOf({"agp", "dorefa", "level", "naive", "qat"}));
  EXPECT_NE(response->server_version(), "");
}

TEST_F(ClientTest, BindsAModelAndAnswersItsPlan) {
  const auto server = StartServer();
  const Client client = Connect(AddressOf(*server));
  BindRequest request = Request(
      "level",
      R"([{"sparsity": 0.8, "op_types": ["default"]}, {"exclude": true, "op_names": ["fc2"]}])",
      {"fc1", "fc2"}, 4, 5);
  request.lease = absl::Seconds(90);
  const auto session = client.BindModel(request);
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_EQ(session->id().size(), 32u);
  ASSERT_EQ(session->plan().layers_size(), 2);
  EXPECT_TRUE(session->plan().layers(0).compressed());
  EXPECT_FALSE(session->plan().layers(1).compressed());
  EXPECT_THAT(session->initial_stale_layers(), ElementsAre("fc1"));
  const auto lease = session->KeepAlive();
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_GT(*lease, absl::Seconds(60));
  EXPECT_LE(*lease, absl::Seconds(90));
}

TEST_F(ClientTest, ARuleWithoutFiltersLeavesVectorsOutUnlessToldOtherwise) {
  const auto server = StartServer();
  const Client client = Connect(AddressOf(*server));
  BindRequest request = Request("level", R"([{"sparsity": 0.5}])", {"fc", "norm"}, 4, 5);
  request.layers[1].shape = {20};
  const auto session = client.BindModel(request);
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_TRUE(session->plan().layers(0).compressed());
  EXPECT_FALSE(session->plan().layers(1).compressed());
  EXPECT_THAT(session->plan().warnings(),
              ElementsAre(HasSubstr("leaves 1 weight of one dimension out, \"norm\"")));

  request.vectors_need_filter = false;
  const auto every = client.BindModel(request);
  ASSERT_TRUE(every.ok()) << every.status();
  EXPECT_TRUE(every->plan().layers(1).compressed());
}

TEST_F(ClientTest, RefusesABadConfigurationWithTheServersWords) {
  const auto server = StartServer();
  const Client client = Connect(AddressOf(*server));
  const auto session = client.BindModel(Request("level", R"([{"sparsity": 1.3}])", {"fc"}, 4, 5));
  EXPECT_EQ(session.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(session.status().message()),
              HasSubstr("config_list[0].sparsity is 1.3; it must be in [0, 1]"));
}

TEST_F(ClientTest, RefusesAConfigListThatIsNone) {
  const auto server = StartServer();
  const Client client = Connect(AddressOf(*server));
  for (const std::string config_list : {"", "{}", "[1]", "[[]]", "nonsense"}) {
    const auto session = client.BindModel(Request("level", config_list, {"fc"}, 4, 5));
    EXPECT_EQ(session.status().code(), absl::StatusCode::kInvalidArgument) << config_list;
    EXPECT_THAT(std::string(session.status().message()), HasSubstr("config_list")) << config_list;
  }
}

TEST_F(ClientTest, ListsSessionsByLabelsOverManyPages) {
  const auto server = StartServer();
  const Client client = Connect(AddressOf(*server));
  constexpr int kSessions = 1100;  // more than a page
  for (int i = 0; i < kSessions; ++i) {
    BindRequest request = Request("level", kLevel, {"fc"}, 1, 2);
    request.labels = {{"run", i % 2 == 0 ? "even" : "odd"}};
    ASSERT_TRUE(client.BindModel(request).ok());
  }
  const auto all = client.ListSessions();
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(all->size(), static_cast<size_t>(kSessions));
  const auto odd = client.ListSessions({{"run", "odd"}});
  ASSERT_TRUE(odd.ok()) << odd.status();
  EXPECT_EQ(odd->size(), static_cast<size_t>(kSessions / 2));
  EXPECT_EQ(client.ListSessions({{"run", "neither"}})->size(), 0u);
}

TEST_F(ClientTest, ListsWhatWasReportedAlsoOfASessionThatHasEnded) {
  const auto server = StartServer();
  const Client client = Connect(AddressOf(*server));
  BindRequest request = Request("level", kLevel, {"fc"}, 1, 2);
  request.labels = {{"run", "ended"}};
  const auto session = client.BindModel(request);
  ASSERT_TRUE(session.ok()) << session.status();
  ASSERT_TRUE(session->Report({{"accuracy", 0.5}, {"loss", 1}}).ok());
  ASSERT_TRUE(session->Report({{"accuracy", 0.75}}).ok());
  const absl::Status refused = session->Report({{"", 1}});
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(session->Close().ok());
  EXPECT_EQ(session->Report({{"accuracy", 1}}).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(client.ListSessions(request.labels)->size(), 0u);
  const auto all = client.ListAllSessions(request.labels);
  ASSERT_TRUE(all.ok()) << all.status();
  ASSERT_EQ(all->size(), 1u);
  EXPECT_EQ((*all)[0].id(), session->id());
  EXPECT_EQ((*all)[0].results().at("accuracy"), 0.75);
  EXPECT_EQ((*all)[0].results().at("loss"), 1);
}

TEST_F(ClientTest, ClosesASessionTwiceAndStillReportsIt) {
  const auto server = StartServer();
  const Client client = Connect(AddressOf(*server));
  const auto session = client.BindModel(Request("level", kLevel, {"fc"}, 4, 5));
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_TRUE(session->Close().ok());
  EXPECT_TRUE(client.CloseSession(session->id()).ok());
  const auto report = client.GetSession(session->id());
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->session().state(), v1::SESSION_STATE_CLOSED);
  EXPECT_EQ(session->UpdateEpoch(1).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ClientTest, JoinsALiveSessionOnly) {
  const auto server = StartServer();
  const Client client = Connect(AddressOf(*server));
  const auto session = client.BindModel(Request("level", kLevel, {"fc1", "fc2"}, 4, 5));
  ASSERT_TRUE(session.ok()) << session.status();
  const auto rank = Connect(AddressOf(*server)).Join(session->id(), session->route());
  ASSERT_TRUE(rank.ok()) << rank.status();
  EXPECT_EQ(rank->id(), session->id());
  EXPECT_EQ(rank->plan().DebugString(), session->plan().DebugString());
  EXPECT_THAT(rank->initial_stale_layers(), UnorderedElementsAre("fc1", "fc2"));
  ASSERT_TRUE(session->Close().ok());
  EXPECT_EQ(client.Join(session->id()).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(client.Join("0123456789abcdef0123456789abcdef").status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(ClientTest, EveryCallCarriesTheSessionsRouteKey) {
  const auto authenticator = std::make_shared<RecordingAuthenticator>();
  server::ServerOptions options;
  options.authenticator = authenticator;
  const auto server = StartServer(0, options);
  const Client client = Connect(AddressOf(*server));
  ASSERT_TRUE(client.Health().ok());
  ASSERT_TRUE(client.ListAlgorithms().ok());
  const auto session = client.BindModel(Request("agp", R"([{"final_sparsity": 0.5, "end_epoch": 2,
      "op_types": ["default"]}])",
                                                {"fc"}, 4, 5));
  ASSERT_TRUE(session.ok()) << session.status();
  ASSERT_TRUE(session->UpdateEpoch(1).ok());
  ASSERT_TRUE(session->Step(1).ok());
  const std::vector<float> weight = Weight(20, 1);
  ASSERT_TRUE(session->CalcMask({MakeTensor<float>("fc", {4, 5}, weight)})[0].ok());
  ASSERT_TRUE(session->Report({{"accuracy", 1}}).ok());
  ASSERT_TRUE(session->KeepAlive().ok());
  ASSERT_TRUE(session->Close().ok());

  const auto routes = authenticator->routes();
  for (const std::string method : {"BindModel", "UpdateEpoch", "Step", "CalcMask", "ReportResults",
                                   "KeepAlive", "CloseSession"}) {
    EXPECT_THAT(routes.at(method), ElementsAre(session->route())) << method;
  }
  EXPECT_THAT(session->route(), Not(""));
  EXPECT_LE(session->route().size(), 64u);
  for (const auto& [method, keys] : routes) EXPECT_THAT(keys, Not(Contains(""))) << method;
  const auto other = client.BindModel(Request("level", kLevel, {"fc"}, 4, 5));
  EXPECT_NE(other->route(), session->route());
}

// Answers as a server without the call does.
class WithoutReports : public server::Authenticator {
 public:
  absl::StatusOr<server::Caller> Authenticate(const grpc::ServerContextBase&,
                                              absl::string_view method) override {
    if (absl::StrContains(method, "ReportResults")) return absl::UnimplementedError("");
    return server::Caller{"t"};
  }
};

TEST_F(ClientTest, ACallThatAnOlderServerLacksSaysSo) {
  server::ServerOptions options;
  options.authenticator = std::make_shared<WithoutReports>();
  const auto server = StartServer(0, options);
  const auto session =
      Connect(AddressOf(*server)).BindModel(Request("level", kLevel, {"fc"}, 4, 5));
  ASSERT_TRUE(session.ok()) << session.status();
  const absl::Status status = session->Report({{"accuracy", 1}});
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("older than this client"));
}

TEST_F(ClientTest, StartsWithMasksThatTheTrainerHas) {
  const auto server = StartServer();
  const Client client = Connect(AddressOf(*server));
  BindRequest request = Request("level", kLevel, {"fc"}, 4, 4);
  const std::vector<uint8_t> bits = {0x0f, 0xff};
  request.masks = {{"fc", bits}};
  const auto session = client.BindModel(request);
  ASSERT_TRUE(session.ok()) << session.status();
  const auto report = client.GetSession(session->id());
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_DOUBLE_EQ(report->session().achieved_sparsity(), 0.25);
}

TEST_F(ClientTest, UploadsMasksThatNoMessageHolds) {
  const auto server = StartServer();
  const Client client = Connect(AddressOf(*server));
  constexpr int64_t kColumns = 5 << 20;  // bits: 5 MiB of mask over both layers
  BindRequest request = Request("level", kLevel, {"fc1", "fc2"}, 4, kColumns);
  const std::vector<uint8_t> half(4 * kColumns / 8, 0x0f);
  const std::vector<uint8_t> quarter(4 * kColumns / 8, 0x3f);
  request.masks = {{"fc2", quarter}, {"fc1", half}};
  const auto session = client.BindModel(request);
  ASSERT_TRUE(session.ok()) << session.status();
  const auto report = client.GetSession(session->id());
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_DOUBLE_EQ(report->session().layers(0).achieved_sparsity(), 0.5);
  EXPECT_DOUBLE_EQ(report->session().layers(1).achieved_sparsity(), 0.25);

  request.masks[0].layer = "fc3";
  const auto wrong = client.BindModel(request);
  EXPECT_EQ(wrong.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(wrong.status().message()), HasSubstr("fc3"));
}

TEST_F(ClientTest, ADrainingServerIsUnhealthy) {
  const auto server = StartServer();
  ClientOptions options;
  options.retry.time_limit = absl::Milliseconds(100);
  const Client client = Connect(AddressOf(*server), options);
  server->Drain(absl::ZeroDuration());
  EXPECT_EQ(client.Health().code(), absl::StatusCode::kUnavailable);
  const auto session = client.BindModel(Request("level", kLevel, {"fc"}, 4, 5));
  EXPECT_EQ(session.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(session.status().message()), HasSubstr(AddressOf(*server)));
}

}  // namespace
}  // namespace nni_compression
