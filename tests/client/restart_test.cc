// A server that goes away and comes back.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <memory>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "client/cpp/connection.h"
#include "server/storage/disk_storage.h"
#include "tests/client/client_test_base.h"

namespace nni_compression {
namespace {

class RestartTest : public ClientTestBase {
 protected:
  std::unique_ptr<server::Server> server_ = StartServer();
  const int port_ = server_->port();
};

TEST_F(RestartTest, ACallIsRetriedUntilTheServerIsBack) {
  const Client client = Connect(AddressOf(*server_));
  server_.reset();
  absl::Status status;
  std::thread caller([&] { status = client.ListAlgorithms().status(); });
  server_ = StartServer(port_);
  caller.join();
  EXPECT_TRUE(status.ok()) << status;
}

// As gRPC does with calls that reach a server when it has begun to end.
class CancelsTheFirst : public server::Authenticator {
 public:
  absl::StatusOr<server::Caller> Authenticate(const grpc::ServerContextBase&,
                                              absl::string_view method) override {
    if (absl::EndsWith(method, "ListAlgorithms") && calls_++ == 0) {
      return absl::CancelledError("CANCELLED");
    }
    return server::Caller{};
  }

  int calls() const { return calls_; }

 private:
  std::atomic<int> calls_{0};
};

TEST_F(RestartTest, ACallThatAnEndingServerCancelsIsRetried) {
  server::ServerOptions options;
  const auto cancels = std::make_shared<CancelsTheFirst>();
  options.authenticator = cancels;
  const auto ending = StartServer(0, std::move(options));
  const Client client = Connect(AddressOf(*ending));
  const absl::Status status = client.ListAlgorithms().status();
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(cancels->calls(), 2);
}

// Whom calls came from: every connection has a port of its own.
class RemembersPeers : public server::Authenticator {
 public:
  absl::StatusOr<server::Caller> Authenticate(const grpc::ServerContextBase& context,
                                              absl::string_view) override {
    server::MutexLock lock(&mutex_);
    peers_.insert(context.peer());
    return server::Caller{"us"};
  }

  size_t peers() const {
    server::MutexLock lock(&mutex_);
    return peers_.size();
  }

 private:
  mutable server::Mutex mutex_;
  std::set<std::string> peers_ ABSL_GUARDED_BY(mutex_);
};

TEST_F(RestartTest, ConnectionsThatAreReplacedForTheirAgeAreNotNoticed) {
  const auto remembers = std::make_shared<RemembersPeers>();
  server::ServerOptions options;
  options.authenticator = remembers;
  options.max_connection_age = absl::Milliseconds(200);
  const auto server = StartServer(0, std::move(options));
  // A call may start on a connection that is told at that moment to take no more; it is retried.
  const Client client = Connect(AddressOf(*server));
  while (remembers->peers() < 6) {
    const absl::Status status = client.ListAlgorithms().status();
    ASSERT_TRUE(status.ok()) << status;
  }
}

TEST_F(RestartTest, AServerWhoseDataDirectoryHasGoneBackIsNoticed) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::path(::testing::TempDir()) / internal::RandomId();
  const auto start = [&](int port) {
    server::DiskStorageOptions storage;
    storage.directory = (folder / "data").string();
    server::ServerOptions options;
    options.storage = *server::DiskStorage::Open(storage);
    return StartServer(port, std::move(options));
  };
  fs::create_directories(folder / "data");
  auto server = start(0);
  const int port = server->port();
  const Client client = Connect(AddressOf(*server));
  const auto session = client.BindModel(Request("level", kLevel, {"a"}, 2, 5));
  ASSERT_TRUE(session.ok()) << session.status();
  const auto weight = Weight(10, 1);
  const Tensor tensor = MakeTensor<float>("a", {2, 5}, absl::MakeConstSpan(weight));
  ASSERT_TRUE(session->UpdateEpoch(1).ok());
  server.reset();
  fs::copy(folder / "data", folder / "backup", fs::copy_options::recursive);
  server = start(port);
  ASSERT_TRUE(session->UpdateEpoch(1).ok());
  ASSERT_TRUE(session->CalcMask({tensor})[0].ok());
  server.reset();
  fs::remove_all(folder / "data");
  fs::rename(folder / "backup", folder / "data");
  server = start(port);
  for (const absl::Status& status : {session->UpdateEpoch(2).status(), session->Step(1).status(),
                                     session->CalcMask({tensor})[0].status()}) {
    EXPECT_TRUE(absl::IsNotFound(status)) << status;
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("that its trainer has seen"));
  }
  const auto another = client.Join(session->id(), session->route());
  ASSERT_TRUE(another.ok()) << another.status();
  EXPECT_TRUE(another->UpdateEpoch(2).ok());
  server.reset();
  fs::remove_all(folder);
}

TEST_F(RestartTest, ACallGivesUpAtItsTimeout) {
  const Client client = Connect(AddressOf(*server_));
  server_.reset();
  CallOptions options;
  options.timeout = absl::Milliseconds(300);
  const absl::Time start = absl::Now();
  const absl::Status status = client.ListAlgorithms(options).status();
  // The timeout ends the pause before a next attempt, or an attempt that is under way.
  EXPECT_THAT(status.code(), ::testing::AnyOf(absl::StatusCode::kUnavailable,
                                              absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr(client.address()));
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
}

TEST_F(RestartTest, ACallGivesUpAtTheTimeLimitOfRetries) {
  ClientOptions options;
  options.retry.time_limit = absl::Milliseconds(300);
  const Client client = Connect(AddressOf(*server_), options);
  server_.reset();
  EXPECT_EQ(client.ListAlgorithms().status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(RestartTest, MasksThatWereAnsweredBeforeTheServerWasLostAreKept) {
  const Client client = Connect(AddressOf(*server_));
  // A small layer, whose answer comes long before the large ones are sent.
  std::vector<std::string> names;
  for (int i = 0; i < 16; ++i) names.push_back(absl::StrCat("large", i));
  BindRequest request = Request("level", kLevel, names, 16, 1 << 20);
  Layer small = request.layers[0];
  small.name = "small";
  small.shape = {4, 5};
  request.layers.push_back(small);
  const auto session = client.BindModel(request);
  ASSERT_TRUE(session.ok()) << session.status();
  const auto weight = Weight(16 << 20, 1);
  std::vector<Tensor> tensors = {
      MakeTensor<float>("small", {4, 5}, absl::MakeConstSpan(weight).first(20))};
  for (const std::string& name : names) {
    tensors.push_back(MakeTensor<float>(name, {16, 1 << 20}, weight));
  }
  bool restarted = false;
  CallOptions options;
  options.progress = [&](const Progress& progress) {
    if (restarted || progress.answered < 1) return;
    restarted = true;
    EXPECT_LT(progress.sent_bytes, progress.total_bytes);
    server_.reset();
    server_ = StartServer(port_);
  };
  const auto masks = session->CalcMask(tensors, options);
  EXPECT_TRUE(restarted);
  EXPECT_TRUE(masks.front().ok()) << masks.front().status();
  // Sessions of this server live in memory: the new one does not know it, and says so.
  EXPECT_EQ(masks.back().status().code(), absl::StatusCode::kNotFound) << masks.back().status();
}

}  // namespace
}  // namespace nni_compression
