#include "server/shm/socket_listener.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "tests/testing/latch.h"
#include "tests/testing/sealed_file.h"
#include "tests/testing/shm_socket_client.h"

namespace nni_compression::server {
namespace {

using ::nni_compression::testing::Eventually;
using ::nni_compression::testing::HelloRequest;
using ::nni_compression::testing::SealedFile;
using ::nni_compression::testing::ShmSocketClient;
using ::nni_compression::testing::ShmSocketPath;
using ::testing::HasSubstr;

constexpr int64_t kOfferedSize = 4096;
constexpr uid_t kNobody = 65534;

int64_t OpenDescriptors() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return std::distance(begin(all), end(all));
}

class SocketListenerTest : public ::testing::Test {
 protected:
  SocketListenerTest() { options_.path = ShmSocketPath(); }

  void Start() {
    auto started = SocketListener::Start(options_, Authenticator::AllowAll(), &table_);
    ASSERT_TRUE(started.ok()) << started.status();
    listener_ = *std::move(started);
  }

  bool Exists() const { return ::access(options_.path.c_str(), F_OK) == 0; }

  RegionTable table_{int64_t{1} << 30};
  ShmSocketOptions options_;
  std::unique_ptr<SocketListener> listener_;
};

TEST_F(SocketListenerTest, ATrainerAddsAndDropsRegions) {
  Start();
  ShmSocketClient trainer(options_.path);
  EXPECT_EQ(trainer.Hello().code(), 0);
  const auto added = trainer.AddRegion(SealedFile(kOfferedSize).get(), kOfferedSize, true);
  EXPECT_EQ(added.code(), 0) << added.message();
  EXPECT_EQ(table_.mapped_bytes(), kOfferedSize);
  EXPECT_EQ(trainer.DropRegion(added.region()).code(), 0);
  EXPECT_EQ(table_.mapped_bytes(), 0);
}

TEST_F(SocketListenerTest, OnlyTheOwnUserMayUseTheFile) {
  Start();
  struct stat file;
  ASSERT_EQ(stat(options_.path.c_str(), &file), 0);
  EXPECT_EQ(file.st_mode & 0777, 0600u);
  EXPECT_EQ(file.st_uid, geteuid());
}

TEST_F(SocketListenerTest, TheFileIsRemovedAtTheEnd) {
  Start();
  EXPECT_TRUE(Exists());
  listener_.reset();
  EXPECT_FALSE(Exists());
}

TEST_F(SocketListenerTest, AFileThatIsLeftOverIsReplaced) {
  Start();
  // What a killed server leaves: a file at which nobody listens.
  const std::string kept = options_.path + ".kept";
  ASSERT_EQ(rename(options_.path.c_str(), kept.c_str()), 0);
  listener_.reset();
  ASSERT_EQ(rename(kept.c_str(), options_.path.c_str()), 0);
  Start();
  EXPECT_EQ(ShmSocketClient(options_.path).Hello().code(), 0);
}

TEST_F(SocketListenerTest, AnotherServersSocketIsLeftAlone) {
  Start();
  const auto second = SocketListener::Start(options_, Authenticator::AllowAll(), &table_);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ShmSocketClient(options_.path).Hello().code(), 0);
}

TEST_F(SocketListenerTest, AFileThatIsNoSocketIsLeftAlone) {
  std::ofstream(options_.path) << "precious";
  const auto started = SocketListener::Start(options_, Authenticator::AllowAll(), &table_);
  EXPECT_EQ(started.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(Exists());
  unlink(options_.path.c_str());
}

TEST_F(SocketListenerTest, UsersThatCannotBeToldApartAreRefused) {
  options_.uids = {geteuid(), kNobody};
  const auto started = SocketListener::Start(options_, Authenticator::AllowAll(), &table_);
  EXPECT_EQ(started.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(started.status().message(), HasSubstr("shm_uids has 65534"));
  EXPECT_FALSE(Exists());

  const std::string map = options_.path + ".map";
  std::ofstream(map) << "         0     100000          2\n     10001      10001          1\n";
  EXPECT_TRUE(CheckUids({0, 1, 10001}, map).ok());
  for (const uid_t uid : {2u, 1000u, 10000u, 10002u}) {
    const absl::Status status = CheckUids({uid}, map);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << uid;
    EXPECT_THAT(status.message(), HasSubstr("PrivateUsers=no"));
  }
  unlink(map.c_str());
}

TEST_F(SocketListenerTest, APathThatIsTooLongIsRefused) {
  options_.path = std::string(200, 'x');
  EXPECT_EQ(SocketListener::Start(options_, Authenticator::AllowAll(), &table_).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(SocketListenerTest, AnotherUidIsNotLetIn) {
  options_.uids = {kNobody + 1};
  Start();
  ShmSocketClient trainer(options_.path);
  ASSERT_TRUE(trainer.connected());
  EXPECT_TRUE(trainer.IsClosed());
}

TEST_F(SocketListenerTest, TheKernelSaysWhoConnects) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  options_.uids = {0, kNobody + 1};  // so that the file's mode lets everybody try
  Start();
  const std::string hello = HelloRequest().SerializeAsString();
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if (setgid(kNobody) != 0 || setuid(kNobody) != 0) _exit(3);
    ShmSocketClient stranger(options_.path);
    if (!stranger.connected()) _exit(4);
    stranger.Send(hello);
    _exit(stranger.IsClosed() ? 0 : 5);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_EQ(ShmSocketClient(options_.path).Hello().code(), 0);
}

TEST_F(SocketListenerTest, WhoDoesNotSayHelloIsCutOff) {
  options_.hello_timeout = absl::Milliseconds(20);
  Start();
  ShmSocketClient silent(options_.path);
  EXPECT_TRUE(silent.IsClosed());
  EXPECT_TRUE(Eventually([&] { return listener_->connections() == 0; }));
}

TEST_F(SocketListenerTest, ConnectionsAboveTheLimitAreClosedAndOthersGoOn) {
  options_.max_connections = 2;
  Start();
  ShmSocketClient first(options_.path);
  ShmSocketClient second(options_.path);
  EXPECT_EQ(first.Hello().code(), 0);
  EXPECT_EQ(second.Hello().code(), 0);
  EXPECT_TRUE(ShmSocketClient(options_.path).IsClosed());
  EXPECT_EQ(first.AddRegion(SealedFile(kOfferedSize).get(), kOfferedSize, false).code(), 0);
  second.Close();
  EXPECT_TRUE(Eventually([&] { return ShmSocketClient(options_.path).Hello().code() == 0; }));
}

TEST_F(SocketListenerTest, TenThousandConnectionsLeaveNothingBehind) {
  options_.max_connections = 16;
  Start();
  ShmSocketClient trainer(options_.path);
  ASSERT_EQ(trainer.Hello().code(), 0);
  const int64_t before = OpenDescriptors();
  std::vector<ShmSocketClient> held;
  for (int i = 0; i < 10000; ++i) {
    ShmSocketClient flood(options_.path);
    EXPECT_LE(listener_->connections(), 16);
    if (i % 100 == 0) held.push_back(std::move(flood));
  }
  EXPECT_EQ(trainer.AddRegion(SealedFile(kOfferedSize).get(), kOfferedSize, false).code(), 0);
  held.clear();
  EXPECT_TRUE(Eventually([&] { return listener_->connections() == 1; }));
  EXPECT_TRUE(Eventually([&] { return OpenDescriptors() == before; }));
}

TEST_F(SocketListenerTest, DescriptorsThatNobodyAskedForAreClosed) {
  Start();
  ShmSocketClient trainer(options_.path);
  ASSERT_EQ(trainer.Hello().code(), 0);
  const FileDescriptor file = SealedFile(kOfferedSize);
  const int64_t before = OpenDescriptors();
  const std::vector<int> many(50, file.get());  // more than the server has room for
  const std::string add = testing::AddRegionRequest(kOfferedSize, false).SerializeAsString();
  ASSERT_TRUE(trainer.Send(add, many));
  EXPECT_EQ(trainer.Receive().code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
  nni::compression::v1::SideRequest drop;
  drop.mutable_drop_region()->set_region("x");
  ASSERT_TRUE(trainer.Send(drop.SerializeAsString(), many));
  EXPECT_EQ(trainer.Receive().code(), static_cast<int>(absl::StatusCode::kNotFound));
  EXPECT_EQ(OpenDescriptors(), before);
}

TEST_F(SocketListenerTest, ADescriptorBesideAHelloIsClosedWhenTheHelloIsRefused) {
  Start();
  const FileDescriptor file = SealedFile(kOfferedSize);
  ShmSocketClient trainer(options_.path);
  const int64_t before = OpenDescriptors();
  trainer.Send("nonsense", {file.get()});
  EXPECT_EQ(trainer.Receive().code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
  EXPECT_TRUE(trainer.IsClosed());
  EXPECT_TRUE(Eventually([&] { return OpenDescriptors() < before + 1; }));
}

TEST_F(SocketListenerTest, APacketThatIsTooLargeEndsTheConnection) {
  Start();
  ShmSocketClient trainer(options_.path);
  ASSERT_EQ(trainer.Hello().code(), 0);
  trainer.Send(std::string(SocketConnection::kMaxPacketBytes + 1, 'x'));
  EXPECT_TRUE(trainer.IsClosed());
}

TEST_F(SocketListenerTest, APeerThatDoesNotTakeItsAnswersIsCutOff) {
  Start();
  ShmSocketClient trainer(options_.path);
  ASSERT_EQ(trainer.Hello().code(), 0);
  nni::compression::v1::SideRequest drop;
  drop.mutable_drop_region()->set_region("x");
  const std::string packet = drop.SerializeAsString();
  // The socket holds so many answers and no more.
  EXPECT_TRUE(Eventually([&] {
    for (int i = 0; i < 1000; ++i) {
      if (!trainer.Send(packet)) return true;
    }
    return false;
  }));
}

TEST_F(SocketListenerTest, TheRegionsOfATrainerThatWasKilledAreUnmapped) {
  Start();
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ShmSocketClient trainer(options_.path);
    trainer.Hello();
    const FileDescriptor file = SealedFile(kOfferedSize);
    const testing::Mapping mapping(file.get(), kOfferedSize);
    const char done = trainer.AddRegion(file.get(), kOfferedSize, true).code() == 0 ? 'y' : 'n';
    if (write(ready[1], &done, 1) == 1) pause();
    _exit(1);
  }
  char done = 'n';
  ASSERT_EQ(read(ready[0], &done, 1), 1);
  EXPECT_EQ(done, 'y');
  EXPECT_EQ(table_.mapped_bytes(), kOfferedSize);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  EXPECT_TRUE(Eventually([&] { return table_.mapped_bytes() == 0; }));
  close(ready[0]);
  close(ready[1]);
}

}  // namespace
}  // namespace nni_compression::server
