// Calls that end at each of their stages: cancelled, by their deadline, by their client's death.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "tests/testing/latch.h"
#include "tests/testing/test_server.h"

namespace nni_compression::testing {
namespace {

enum class Ending { kCancelled, kDeadline, kKilled };

// Long enough to reach the stage on a busy machine.
constexpr char kDeadlineMilliseconds[] = "3000";

// A client in a process of its own, since gRPC does not survive a fork; testing/peer.cc says what
// it does.
class Peer {
 public:
  Peer(TestServer& server, Ending ending, const std::string& method, const std::string& session,
       int64_t elements, int64_t sent)
      : ending_(ending) {
    int output[2];
    EXPECT_EQ(pipe2(output, O_CLOEXEC), 0);
    const std::string address = absl::StrCat("127.0.0.1:", server.server().port());
    process_ = fork();
    if (process_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);  // where the test is ended, so is this
      dup2(output[1], STDOUT_FILENO);
      execl(TEST_PEER, TEST_PEER, address.c_str(), method.c_str(), session.c_str(), "a",
            absl::StrCat(elements).c_str(), absl::StrCat(sent).c_str(),
            ending == Ending::kDeadline ? kDeadlineMilliseconds : "0", static_cast<char*>(nullptr));
      _exit(127);
    }
    close(output[1]);
    output_ = output[0];
  }

  ~Peer() {
    kill(process_, SIGKILL);
    waitpid(process_, nullptr, 0);
    close(output_);
  }

  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;

  // Waits until it has sent what it sends ('s') or received a message ('r').
  void WaitFor(char what) {
    for (char said = 0; said != what;) ASSERT_EQ(read(output_, &said, 1), 1);
  }

  // Waits until its call, which waits for a message, has ended for it.
  void WaitForTheEnd() {
    char said = 0;
    while (said != 'e' && read(output_, &said, 1) == 1) {
    }
  }

  // Ends its call; a deadline comes by itself.
  void End() {
    if (ending_ == Ending::kCancelled) kill(process_, SIGTERM);
    if (ending_ == Ending::kKilled) kill(process_, SIGKILL);
  }

 private:
  const Ending ending_;
  pid_t process_ = 0;
  int output_ = -1;
};

// After each the memory is back and the session as it was.
class InterruptedCallsTest : public ::testing::TestWithParam<Ending> {
 protected:
  void Begin(const v1::BindModelRequest& request) {
    id_ = Bind(server_.stub(), request);
    before_ = server_.server().memory_reserved();
    described_ = Describe();
  }

  void ExpectNothingHappened() {
    EXPECT_TRUE(server_.MemoryReturnsTo(before_)) << server_.server().memory_reserved();
    EXPECT_EQ(Describe(), described_);
  }

  std::string Describe() {
    v1::GetSessionResponse response;
    EXPECT_TRUE(GetSession(server_.stub(), id_, &response).ok());
    return response.session().ShortDebugString();
  }

  bool ReservesMoreThan(int64_t bytes) {
    return Eventually([&] { return server_.server().memory_reserved() > bytes; });
  }

  TestServer server_;
  std::string id_;
  std::string described_;
  int64_t before_ = 0;
};

TEST_P(InterruptedCallsTest, WhileTheHeaderIsAllThatCame) {
  Begin(BindRequest("level", {{"sparsity", 0.5}}, {{"a", {4}}}));
  Peer peer(server_, GetParam(), "CalcMask", id_, 4, 0);
  peer.WaitFor('s');
  peer.End();
  peer.WaitForTheEnd();
  ExpectNothingHappened();
}

TEST_P(InterruptedCallsTest, WhileItSends) {
  Begin(BindRequest("level", {{"sparsity", 0.5}}, {{"a", {4}}}));
  Peer peer(server_, GetParam(), "CalcMask", id_, 4, 1);
  EXPECT_TRUE(ReservesMoreThan(before_));
  peer.End();
  ExpectNothingHappened();
}

TEST_P(InterruptedCallsTest, WhileItWaitsItsTurn) {
  Begin(BindRequest("slow", {}, {{"a", {4}}}));
  MaskStream computing(server_.stub());
  computing.Send(MaskMessage().Open(id_).Tensor(Header(0, "a", {4}), Bytes({1, 2, 3, 4})));
  server_.slow().computing.Wait();
  const int64_t one = server_.server().memory_reserved();
  Peer peer(server_, GetParam(), "CalcMask", id_, 4, 16);
  peer.WaitFor('s');
  EXPECT_TRUE(ReservesMoreThan(one));
  peer.End();
  peer.WaitForTheEnd();
  server_.slow().release.Set();
  v1::CalcMaskResponse response;
  EXPECT_TRUE(computing.Read(&response)) << "the others do not notice";
  computing.HalfClose();
  EXPECT_TRUE(computing.Finish().ok());
  EXPECT_TRUE(server_.MemoryReturnsTo(before_));
}

TEST_P(InterruptedCallsTest, WhileItComputes) {
  Begin(BindRequest("slow", {}, {{"a", {4}}}));
  Peer peer(server_, GetParam(), "CalcMask", id_, 4, 16);
  server_.slow().computing.Wait();
  peer.End();
  peer.WaitForTheEnd();
  server_.slow().release.Set();
  EXPECT_TRUE(server_.MemoryReturnsTo(before_));
}

TEST_P(InterruptedCallsTest, WhileItsResultsWait) {
  const int64_t n = 4 << 20;  // 16 MiB of values, more than the transport buffers
  Begin(BindRequest("dorefa", {}, {{"a", {n}}}));
  Peer peer(server_, GetParam(), "QuantizeWeight", id_, n, n * 4);
  peer.WaitFor('r');
  EXPECT_TRUE(ReservesMoreThan(before_));
  peer.End();
  EXPECT_TRUE(server_.MemoryReturnsTo(before_));
}

INSTANTIATE_TEST_SUITE_P(All, InterruptedCallsTest,
                         ::testing::Values(Ending::kCancelled, Ending::kDeadline, Ending::kKilled),
                         [](const auto& ending) {
                           return std::string(ending.param == Ending::kCancelled ? "Cancelled"
                                              : ending.param == Ending::kDeadline
                                                  ? "ByItsDeadline"
                                                  : "ByItsClientsDeath");
                         });

}  // namespace
}  // namespace nni_compression::testing
