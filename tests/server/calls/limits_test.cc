// Limits, of tenants and of the server: what is above one, what that says, and when it is over.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <cerrno>
#include <chrono>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "proto/wire/frames.h"
#include "server/platform/file_descriptor.h"
#include "server/storage/memory_storage.h"
#include "tests/testing/test_server.h"

namespace nni_compression::testing {
namespace {

using ::testing::HasSubstr;

// Everybody is an operator with this quota.
class EqualTenants : public server::Authenticator {
 public:
  explicit EqualTenants(const access::Quota& quota) : quota_(quota) {}

  absl::StatusOr<server::Caller> Authenticate(const grpc::ServerContextBase&,
                                              absl::string_view) override {
    return server::Caller{"us", true, quota_};
  }

 private:
  const access::Quota quota_;
};

server::ServerOptions WithQuota(const access::Quota& quota) {
  server::ServerOptions options;
  options.authenticator = std::make_shared<EqualTenants>(quota);
  return options;
}

const std::string kFourWeights = Bytes({1, 2, 3, 4});

// A call that uploads so many tensors of the layer a.
grpc::Status Upload(TestServer& server, const std::string& id, uint32_t tensors,
                    grpc::ClientContext* context) {
  MaskMessage message;
  message.Open(id);
  for (uint32_t i = 0; i < tensors; ++i) message.Tensor(Header(i, "a", {4}), kFourWeights);
  const auto stream = server.stub().CalcMask(context);
  stream->Write(message.proto());
  stream->WritesDone();
  v1::CalcMaskResponse response;
  while (stream->Read(&response)) {
  }
  return stream->Finish();
}

v1::TenantUse Use(TestServer& server) {
  grpc::ClientContext context;
  v1::ListTenantsResponse response;
  EXPECT_TRUE(server.stub().ListTenants(&context, {}, &response).ok());
  EXPECT_EQ(response.tenants_size(), 1);
  return response.tenants(0);
}

absl::Duration RetryDelay(const grpc::Status& status) {
  google::rpc::Status details;
  google::rpc::RetryInfo retry;
  if (!details.ParseFromString(status.error_details()) || details.details_size() != 1 ||
      !details.details(0).UnpackTo(&retry)) {
    return absl::ZeroDuration();
  }
  return absl::Seconds(retry.retry_delay().seconds()) +
         absl::Nanoseconds(retry.retry_delay().nanos());
}

TEST(LimitsTest, AQuotaOfUploadsLetsSoManyPassASecond) {
  access::Quota quota;
  quota.uploads = 2;
  TestServer server(WithQuota(quota));
  const std::string id =
      Bind(server.stub(), BindRequest("level", {{"sparsity", 0.5}}, {{"a", {4}}}));
  grpc::ClientContext first, second, third;
  EXPECT_TRUE(Upload(server, id, 5, &first).ok()) << "the tensors of a call belong together";
  const grpc::Status refused = Upload(server, id, 1, &second);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(refused.error_message(), HasSubstr("quota of uploads is 2 tensors per second"));
  EXPECT_EQ(RetryDelay(refused), absl::Seconds(2));
  EXPECT_TRUE(second.GetServerTrailingMetadata().find("grpc-retry-pushback-ms")->second == "2000");
  server.Advance(absl::Seconds(1));
  EXPECT_EQ(Use(server).uploads(), 5u);
  server.Advance(absl::Seconds(1));
  EXPECT_TRUE(Upload(server, id, 1, &third).ok());
}

TEST(LimitsTest, AQuotaOfDiskCountsWhatSessionsMayComeToTake) {
  const v1::BindModelRequest request =
      BindRequest("level", {{"sparsity", 0.5}}, {{"a", {8 << 20}}});  // a mask of 1 MiB
  access::Quota quota;
  quota.disk = 3 << 20;
  server::ServerOptions options = WithQuota(quota);
  options.storage = std::make_shared<server::MemoryStorage>();
  auto server = std::make_unique<TestServer>(options);
  const auto bind = [&] {
    grpc::ClientContext context;
    v1::BindModelResponse response;
    return server->stub().BindModel(&context, request, &response);
  };
  const std::string id = Bind(server->stub(), request);
  EXPECT_TRUE(bind().ok());
  const uint64_t used = Use(*server).disk_bytes();
  EXPECT_GT(used, 2u << 20);
  EXPECT_LT(used, 3u << 20);
  server = nullptr;
  server = std::make_unique<TestServer>(options);
  EXPECT_EQ(Use(*server).disk_bytes(), used) << "after a restart, too";
  const grpc::Status refused = bind();
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(refused.error_message(),
              HasSubstr(absl::StrCat("quota of disk is 3145728, of which ", used, " are in use")));
  EXPECT_GT(RetryDelay(refused), absl::ZeroDuration());
  EXPECT_TRUE(CloseSession(server->stub(), id).ok());
  EXPECT_EQ(Use(*server).disk_bytes(), used / 2);
  EXPECT_TRUE(bind().ok());
}

TEST(LimitsTest, SessionsThatLiveInMemoryTakeNoDisk) {
  access::Quota quota;
  quota.disk = 0;
  TestServer server(WithQuota(quota));
  Bind(server.stub(), BindRequest("level", {{"sparsity", 0.5}}, {{"a", {4}}}));
  EXPECT_EQ(Use(server).disk_bytes(), 0u);
}

TEST(LimitsTest, TheDiskBudgetOfTheServerHoldsForAllTenants) {
  server::ServerOptions options;
  options.storage = std::make_shared<server::MemoryStorage>();
  options.sessions.disk_budget = 1 << 20;
  options.authenticator = TenantFromMetadata();
  TestServer server(options);
  const auto bind = [&](const std::string& tenant, int64_t elements) {
    grpc::ClientContext context;
    context.AddMetadata("tenant", tenant);
    v1::BindModelResponse response;
    return server.stub().BindModel(
        &context, BindRequest("level", {{"sparsity", 0.5}}, {{"a", {elements}}}), &response);
  };
  EXPECT_TRUE(bind("a", 4 << 20).ok());
  const grpc::Status refused = bind("b", 4 << 20);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(refused.error_message(), HasSubstr("disk_budget is 1048576"));
  EXPECT_GT(RetryDelay(refused), absl::ZeroDuration());
  EXPECT_EQ(RetryDelay(bind("b", 16 << 20)), absl::ZeroDuration()) << "no waiting helps";
  EXPECT_TRUE(bind("b", 1 << 20).ok());
}

TEST(LimitsTest, ASlowUploadLosesItsCallAndItsMemory) {
  server::ServerOptions options;
  options.min_upload_rate = 10;
  TestServer server(options);
  const std::string id =
      Bind(server.stub(), BindRequest("level", {{"sparsity", 0.5}}, {{"a", {1024}}}));
  const int64_t before = server.server().memory_reserved();
  MaskStream stream(server.stub());
  stream.Send(MaskMessage().Open(id).Add(Header(0, "a", {1024})).Chunk(0, 0, "x"));
  // A little every half minute. The answer shows that it has arrived, but the server may begin to
  // wait for more only after the clock was moved: that half minute does not count.
  v1::CalcMaskResponse response;
  uint32_t i = 1;
  while (stream.Send(MaskMessage().Add(Header(i, "none", {4})).Chunk(0, i, "x")) &&
         stream.Read(&response)) {
    EXPECT_GT(server.server().memory_reserved(), before);
    server.Advance(absl::Seconds(31));
    ++i;
  }
  EXPECT_GE(i, 3u) << "half a minute is not too long";
  const grpc::Status status = stream.Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_THAT(status.error_message(), HasSubstr("it must send at least 10 per second"));
  EXPECT_TRUE(server.MemoryReturnsTo(before));
}

TEST(LimitsTest, WatchesAreCalls) {
  for (const bool of_tenant : {false, true}) {
    access::Quota quota;
    if (of_tenant) quota.calls = 3;
    server::ServerOptions options = WithQuota(quota);
    if (!of_tenant) options.max_calls = 3;
    TestServer server(options);
    grpc::ClientContext contexts[4];
    std::vector<std::unique_ptr<grpc::ClientReader<grpc::health::v1::HealthCheckResponse>>> watches;
    grpc::health::v1::HealthCheckResponse response;
    for (int i = 0; i < 3; ++i) {
      watches.push_back(server.health().Watch(&contexts[i], {}));
      ASSERT_TRUE(watches.back()->Read(&response));
    }
    watches.push_back(server.health().Watch(&contexts[3], {}));
    EXPECT_FALSE(watches.back()->Read(&response));
    EXPECT_EQ(watches.back()->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    grpc::ClientContext check;
    EXPECT_TRUE(server.health().Check(&check, {}, &response).ok()) << "a probe is no call";
    // They do not hold up a drain, and hear of it.
    server.server().Drain(absl::Minutes(5));
    for (int i = 0; i < 3; ++i) {
      ASSERT_TRUE(watches[i]->Read(&response));
      EXPECT_EQ(response.status(), grpc::health::v1::HealthCheckResponse::NOT_SERVING);
      EXPECT_FALSE(watches[i]->Read(&response));
      EXPECT_EQ(watches[i]->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
    }
  }
}

TEST(LimitsTest, MoreHeadersThan8KibAreRefused) {
  TestServer server;
  for (const auto& [bytes, code] : {std::pair(7 << 10, grpc::StatusCode::OK),
                                    {9 << 10, grpc::StatusCode::RESOURCE_EXHAUSTED}}) {
    grpc::ClientContext context;
    context.AddMetadata("x", std::string(static_cast<size_t>(bytes), 'x'));
    v1::ListAlgorithmsResponse response;
    EXPECT_EQ(server.stub().ListAlgorithms(&context, {}, &response).error_code(), code) << bytes;
  }
}

TEST(LimitsTest, AMessageHas4MibAtMost) {
  TestServer server;
  constexpr size_t kTagAndLength = 5;
  const auto code = [&](size_t bytes) {
    grpc::ClientContext context;
    v1::GetSessionRequest request;
    v1::GetSessionResponse response;
    request.set_session_id(std::string(bytes - kTagAndLength, 'x'));
    EXPECT_EQ(request.ByteSizeLong(), bytes);
    return server.stub().GetSession(&context, request, &response).error_code();
  };
  EXPECT_EQ(code(wire::kMaxMessageBytes), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(code(wire::kMaxMessageBytes + 1), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

// A connection whose peer says nothing.
class SilentPeer {
 public:
  void Connect(const TestServer& server) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(server.server().port()));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(connect(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }

  // What comes within that time: the server's settings, the end, or nothing.
  enum class Heard { kSettings, kEnd, kNothing };
  Heard Hear(absl::Duration patience = absl::Seconds(60)) {
    const timeval time = absl::ToTimeval(patience);
    setsockopt(socket_.get(), SOL_SOCKET, SO_RCVTIMEO, &time, sizeof(time));
    char bytes[1024];
    const ssize_t got = recv(socket_.get(), bytes, sizeof(bytes), 0);
    if (got > 0) return Heard::kSettings;
    return got == 0 || errno == ECONNRESET ? Heard::kEnd : Heard::kNothing;
  }

 private:
  const server::FileDescriptor socket_{socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
};
using Heard = SilentPeer::Heard;

TEST(LimitsTest, AConnectionThatSaysNothingIsClosedAfterTheHandshakeTimeout) {
  server::ServerOptions options;
  options.handshake_timeout = absl::Milliseconds(200);
  TestServer server(options);
  SilentPeer peer;
  peer.Connect(server);
  Heard heard;
  while ((heard = peer.Hear()) == Heard::kSettings) {
  }
  EXPECT_EQ(heard, Heard::kEnd);
}

TEST(LimitsTest, MoreConnectionsThanThereMayBeAreClosedAtOnce) {
  server::ServerOptions options;
  options.max_connections = 3;
  TestServer server(options);
  auto first = std::make_unique<SilentPeer>();
  SilentPeer second, third, fourth;
  for (SilentPeer* peer : {first.get(), &second, &third}) {
    peer->Connect(server);
    EXPECT_EQ(peer->Hear(), Heard::kSettings);
  }
  EXPECT_EQ(server.server().connections(), 3);
  fourth.Connect(server);
  EXPECT_EQ(fourth.Hear(), Heard::kEnd);
  EXPECT_EQ(server.server().connections(), 3);
  first = nullptr;
  EXPECT_TRUE(Eventually([&] { return server.server().connections() == 2; }));
  EXPECT_TRUE(Eventually([&] {
    first = std::make_unique<SilentPeer>();
    first->Connect(server);
    return first->Hear() == Heard::kSettings;
  })) << "there is room again";
}

TEST(LimitsTest, ConnectionsWaitWhileThereAreNoDescriptorsLeft) {
  TestServer server;
  SilentPeer peer;
  rlimit limit = {};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  const rlimit none = {0, limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  peer.Connect(server);
  EXPECT_EQ(peer.Hear(absl::Milliseconds(300)), Heard::kNothing);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_EQ(peer.Hear(), Heard::kSettings);
}

TEST(LimitsTest, AConnectionWithoutCallsIsClosedAfterTheIdleTimeoutAndMadeAgain) {
  server::ServerOptions options;
  options.idle_timeout = absl::Milliseconds(200);
  TestServer server(options);
  const auto channel = grpc::CreateChannel(absl::StrCat("127.0.0.1:", server.server().port()),
                                           grpc::InsecureChannelCredentials());
  const auto stub = v1::CompressionService::NewStub(channel);
  for (int i = 0; i < 2; ++i) {
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    v1::ListAlgorithmsResponse response;
    EXPECT_TRUE(stub->ListAlgorithms(&context, {}, &response).ok());
    EXPECT_TRUE(channel->WaitForStateChange(
        GRPC_CHANNEL_READY, std::chrono::system_clock::now() + std::chrono::seconds(60)));
  }
}

}  // namespace
}  // namespace nni_compression::testing
