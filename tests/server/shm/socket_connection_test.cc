#include "server/shm/socket_connection.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <string>
#include <utility>
#include <vector>

#include "tests/testing/sealed_file.h"
#include "tests/testing/shm_socket_client.h"

namespace nni_compression::server {
namespace {

namespace v1 = ::nni::compression::v1;

using testing::AddRegionRequest;
using testing::HelloRequest;
using testing::SealedFile;

constexpr int64_t kRegionSize = 4096;

int CodeOf(absl::StatusCode code) { return static_cast<int>(code); }

class SocketConnectionTest : public ::testing::Test {
 protected:
  SocketConnection::Answer Ask(const v1::SideRequest& request,
                               std::vector<FileDescriptor> files = {}) {
    return connection_->Handle(request.SerializeAsString(), std::move(files));
  }
  SocketConnection::Answer Add(FileDescriptor file, uint64_t size = kRegionSize) {
    std::vector<FileDescriptor> files;
    files.push_back(std::move(file));
    return Ask(AddRegionRequest(size, false), std::move(files));
  }

  RegionTable table_{1 << 20};
  std::shared_ptr<Authenticator> authenticator_ = Authenticator::AllowAll();
  std::unique_ptr<SocketConnection> connection_ = std::make_unique<SocketConnection>(
      SocketConnection::Limits{2, 2 * kRegionSize}, authenticator_.get(), &table_);
};

TEST_F(SocketConnectionTest, HelloAnswersTheLimits) {
  const auto answer = Ask(HelloRequest());
  EXPECT_EQ(answer.reply.code(), 0);
  EXPECT_TRUE(answer.reply.has_code());
  EXPECT_FALSE(answer.close);
  EXPECT_EQ(answer.reply.max_regions(), 2u);
  EXPECT_EQ(answer.reply.max_bytes(), static_cast<uint64_t>(2 * kRegionSize));
  EXPECT_TRUE(connection_->admitted());
}

TEST_F(SocketConnectionTest, NothingGoesBeforeHello) {
  const auto answer = Add(SealedFile(kRegionSize));
  EXPECT_EQ(answer.reply.code(), CodeOf(absl::StatusCode::kUnauthenticated));
  EXPECT_TRUE(answer.close);
  EXPECT_EQ(table_.mapped_bytes(), 0);
}

TEST_F(SocketConnectionTest, APacketThatIsNoRequestEndsTheConnection) {
  Ask(HelloRequest());
  for (const std::string& packet :
       {std::string("\xff\xff\xff"), std::string(), std::string("\x0a\x7f"),
        std::string(SocketConnection::kMaxPacketBytes + 1, '\0')}) {
    const auto answer = connection_->Handle(packet, {});
    EXPECT_EQ(answer.reply.code(), CodeOf(absl::StatusCode::kInvalidArgument));
    EXPECT_TRUE(answer.close);
  }
}

TEST_F(SocketConnectionTest, EveryPrefixOfARequestIsHandled) {
  const std::string whole = HelloRequest("somebody").SerializeAsString();
  for (size_t size = 0; size < whole.size(); ++size) {
    SocketConnection connection({2, kRegionSize}, authenticator_.get(), &table_);
    connection.Handle(whole.substr(0, size), {});
    EXPECT_FALSE(connection.admitted()) << size;
  }
}

TEST_F(SocketConnectionTest, AnotherVersionOrASecondHelloIsRefused) {
  v1::SideRequest request;
  request.mutable_hello()->set_version(2);
  EXPECT_TRUE(Ask(request).close);
  Ask(HelloRequest());
  EXPECT_TRUE(Ask(HelloRequest()).close);
}

TEST_F(SocketConnectionTest, AnAuthenticatorThatDoesNotKnowTheSharedMemorySocketLetsNobodyIn) {
  class Stranger : public Authenticator {
    absl::StatusOr<Caller> Authenticate(const grpc::ServerContextBase&,
                                        absl::string_view) override {
      return Caller{"default"};
    }
  } stranger;
  SocketConnection connection({2, kRegionSize}, &stranger, &table_);
  const auto answer = connection.Handle(HelloRequest().SerializeAsString(), {});
  EXPECT_EQ(answer.reply.code(), CodeOf(absl::StatusCode::kUnauthenticated));
  EXPECT_TRUE(answer.close);
}

TEST_F(SocketConnectionTest, ARegionTakesExactlyOneFile) {
  Ask(HelloRequest());
  EXPECT_EQ(Ask(AddRegionRequest(kRegionSize, false)).reply.code(),
            CodeOf(absl::StatusCode::kInvalidArgument));
  std::vector<FileDescriptor> files;
  files.push_back(SealedFile(kRegionSize));
  files.push_back(SealedFile(kRegionSize));
  const int second = files[1].get();
  EXPECT_EQ(Ask(AddRegionRequest(kRegionSize, false), std::move(files)).reply.code(),
            CodeOf(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(fcntl(second, F_GETFD), -1);  // closed
  EXPECT_EQ(table_.mapped_bytes(), 0);
}

TEST_F(SocketConnectionTest, ARefusedFileLeavesTheConnectionAsItWas) {
  Ask(HelloRequest());
  const auto refused = Add(SealedFile(kRegionSize, 0));
  EXPECT_EQ(refused.reply.code(), CodeOf(absl::StatusCode::kInvalidArgument));
  EXPECT_FALSE(refused.close);
  EXPECT_EQ(Add(SealedFile(kRegionSize)).reply.code(), 0);
}

TEST_F(SocketConnectionTest, RegionsAndBytesAreLimited) {
  Ask(HelloRequest());
  EXPECT_EQ(Add(SealedFile(3 * kRegionSize), 3 * kRegionSize).reply.code(),
            CodeOf(absl::StatusCode::kResourceExhausted));
  const std::string first = Add(SealedFile(kRegionSize)).reply.region();
  EXPECT_EQ(Add(SealedFile(kRegionSize)).reply.code(), 0);
  EXPECT_EQ(Add(SealedFile(kRegionSize)).reply.code(),
            CodeOf(absl::StatusCode::kResourceExhausted));
  v1::SideRequest drop;
  drop.mutable_drop_region()->set_region(first);
  EXPECT_EQ(Ask(drop).reply.code(), 0);
  EXPECT_EQ(Ask(drop).reply.code(), CodeOf(absl::StatusCode::kNotFound));
  EXPECT_EQ(Add(SealedFile(kRegionSize)).reply.code(), 0);
}

TEST_F(SocketConnectionTest, OnlyOnesOwnRegionsCanBeDropped) {
  Ask(HelloRequest());
  v1::SideRequest drop;
  drop.mutable_drop_region()->set_region(Add(SealedFile(kRegionSize)).reply.region());
  SocketConnection other({2, kRegionSize}, authenticator_.get(), &table_);
  other.Handle(HelloRequest().SerializeAsString(), {});
  const auto answer = other.Handle(drop.SerializeAsString(), {});
  EXPECT_EQ(answer.reply.code(), CodeOf(absl::StatusCode::kNotFound));
  EXPECT_EQ(table_.mapped_bytes(), kRegionSize);
}

TEST_F(SocketConnectionTest, RegionsGoWithTheConnection) {
  Ask(HelloRequest());
  Add(SealedFile(kRegionSize));
  EXPECT_EQ(table_.mapped_bytes(), kRegionSize);
  connection_.reset();
  EXPECT_EQ(table_.mapped_bytes(), 0);
}

}  // namespace
}  // namespace nni_compression::server
