// Which processes a client sends its token to over the shared-memory socket, and which replies it
// believes.
#include "client/cpp/shared_memory_socket.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"

namespace nni_compression::internal {
namespace {

using ::testing::HasSubstr;

constexpr uid_t kStranger = 10001;

// Another user's process that listens at a path, takes one connection and reads one packet.
class Stranger {
 public:
  explicit Stranger(const std::string& path) {
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof(address.sun_path) - 1);
    int heard[2];
    EXPECT_EQ(pipe(heard), 0);
    int ready[2];
    EXPECT_EQ(pipe(ready), 0);
    child_ = fork();
    if (child_ == 0) {
      char packet[1 << 10];
      const int listener = socket(AF_UNIX, SOCK_SEQPACKET, 0);
      const bool listens =
          setuid(kStranger) == 0 &&
          bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 &&
          listen(listener, 1) == 0;
      if (!listens || write(ready[1], "x", 1) != 1) _exit(1);
      const int peer = accept(listener, nullptr, nullptr);
      const ssize_t size = recv(peer, packet, sizeof(packet), 0);
      if (size > 0 && write(heard[1], packet, static_cast<size_t>(size)) != size) _exit(1);
      _exit(0);
    }
    close(heard[1]);
    close(ready[1]);
    heard_ = heard[0];
    char byte;
    EXPECT_EQ(read(ready[0], &byte, 1), 1) << "it does not listen";
    close(ready[0]);
  }
  ~Stranger() {
    close(heard_);
    waitpid(child_, nullptr, 0);
  }

  // What it was told, once its connection is over.
  std::string Heard() const {
    char packet[1 << 10];
    const ssize_t size = read(heard_, packet, sizeof(packet));
    return std::string(packet, static_cast<size_t>(std::max<ssize_t>(size, 0)));
  }

 private:
  pid_t child_ = 0;
  int heard_ = -1;
};

class SharedMemorySocketTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "needs root, to be two users";
  }
  ~SharedMemorySocketTest() override {
    if (!folder_.empty()) std::filesystem::remove_all(folder_);
  }

  // A folder of the stranger's in `parent`.
  void MakeFolder(const std::string& parent, mode_t mode) {
    std::string pattern = parent + "/shared-memory-socket-XXXXXX";
    folder_ = mkdtemp(pattern.data());
    ASSERT_EQ(chown(folder_.c_str(), kStranger, kStranger), 0);
    ASSERT_EQ(chmod(folder_.c_str(), mode), 0);
  }

  std::string folder_;
};

TEST_F(SharedMemorySocketTest, TellsNothingToAStrangerWhoMayHaveListenedFirst) {
  for (const mode_t mode : {0777, 0755}) {
    MakeFolder("/tmp", mode);
    const Stranger stranger(folder_ + "/side");
    const absl::Status status =
        SharedMemorySocket::Connect(folder_ + "/side", "Bearer secret").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied) << status;
    EXPECT_THAT(status.message(), HasSubstr("user 10001 listens at"));
    EXPECT_EQ(stranger.Heard(), "");
    std::filesystem::remove_all(folder_);
  }
}

TEST_F(SharedMemorySocketTest, TrustsTheOwnerOfAFolderThatNobodyElseCanHaveMade) {
  MakeFolder("/var/lib", 0755);
  const Stranger server(folder_ + "/side");
  EXPECT_EQ(SharedMemorySocket::Connect(folder_ + "/side", "Bearer secret").status().code(),
            absl::StatusCode::kUnavailable)
      << "it says nothing";
  EXPECT_THAT(server.Heard(), HasSubstr("Bearer secret"));
}

TEST_F(SharedMemorySocketTest, DoesNotTrustTheOwnerOfAFolderThatOthersWriteTo) {
  MakeFolder("/var/lib", 0775);
  const Stranger stranger(folder_ + "/side");
  EXPECT_EQ(SharedMemorySocket::Connect(folder_ + "/side", "Bearer secret").status().code(),
            absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(stranger.Heard(), "");
}

TEST(SharedMemorySocketRepliesTest, AReplyThatComesTooLateIsNotThatOfTheNextRequest) {
  const std::string path = absl::StrCat(::testing::TempDir(), "/late-", getpid());
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  const int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  ASSERT_EQ(bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(listen(listener, 1), 0);
  v1::SideReply reply;
  reply.set_code(0);
  reply.set_max_bytes(1 << 30);
  int peer = -1;
  std::thread server([&] {
    char packet[1 << 10];
    peer = accept(listener, nullptr, nullptr);
    EXPECT_GT(recv(peer, packet, sizeof(packet), 0), 0);
    const std::string hello = reply.SerializeAsString();
    EXPECT_GT(send(peer, hello.data(), hello.size(), 0), 0);
  });
  const auto connection = SharedMemorySocket::Connect(path, "");
  server.join();
  ASSERT_TRUE(connection.ok()) << connection.status();
  const auto file = SharedFile::Create(1 << 12);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*connection)->AddRegion(*file, false).status().code(), absl::StatusCode::kUnavailable);
  reply.set_region("late");
  const std::string late = reply.SerializeAsString();
  EXPECT_GT(send(peer, late.data(), late.size(), 0), 0);
  EXPECT_TRUE((*connection)->broken());
  EXPECT_EQ((*connection)->AddRegion(*file, false).status().code(), absl::StatusCode::kUnavailable);
  close(peer);
  close(listener);
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace nni_compression::internal
