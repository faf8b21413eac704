// Probes answer whatever other peers of their port do.
#include "server/monitoring/metrics_listener.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/platform/file_descriptor.h"
#include "tests/testing/latch.h"

namespace nni_compression::server {
namespace {

using nni_compression::testing::Eventually;
using nni_compression::testing::Latch;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

class MetricsListenerTest : public ::testing::Test {
 protected:
  // A connection on which nothing was sent yet.
  FileDescriptor Connect() const {
    FileDescriptor socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<uint16_t>(listener_->port()));
    EXPECT_EQ(connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    return socket;
  }

  static bool Say(const FileDescriptor& socket, const std::string& text) {
    return send(socket.get(), text.data(), text.size(), MSG_NOSIGNAL) ==
           static_cast<ssize_t>(text.size());
  }

  // All that comes until the server closes the connection.
  static std::string Hear(const FileDescriptor& socket) {
    std::string text;
    char bytes[4096];
    ssize_t count;
    while ((count = recv(socket.get(), bytes, sizeof(bytes), 0)) > 0) {
      text.append(bytes, static_cast<size_t>(count));
    }
    return text;
  }

  std::string Ask(const std::string& request) const {
    const FileDescriptor socket = Connect();
    EXPECT_TRUE(Say(socket, request));
    return Hear(socket);
  }
  std::string Get(const std::string& path) const {
    return Ask(absl::StrCat("GET ", path, " HTTP/1.1\r\nHost: here\r\n\r\n"));
  }

  std::atomic<bool> ready_ = true;
  std::atomic<bool> slow_ = false;  // metrics wait for the next two
  std::atomic<int> collections_ = 0;
  Latch collecting_;
  Latch release_;
  std::atomic<size_t> padding_ = 0;  // bytes before the one metric
  const std::unique_ptr<MetricsListener> listener_ = *MetricsListener::Start(
      "127.0.0.1:0",
      [this] {
        ++collections_;
        collecting_.Set();
        if (slow_) release_.Wait();
        return std::string(padding_, '\n') + "one 1\n";
      },
      [this] { return ready_.load(); });
};

TEST_F(MetricsListenerTest, PagesAreAnswered) {
  EXPECT_THAT(Get("/livez"), StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(Get("/livez"), EndsWith("Content-Length: 3\r\nConnection: close\r\n\r\nok\n"));
  EXPECT_THAT(Get("/readyz?verbose"), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(Get("/metrics"), EndsWith("\r\n\r\none 1\n"));
  EXPECT_THAT(Ask("HEAD /livez HTTP/1.1\r\n\r\n"), EndsWith("Connection: close\r\n\r\n"));
  EXPECT_THAT(Ask("GET /livez HTTP/1.0\n\n"), EndsWith("ok\n"));
  ready_ = false;
  EXPECT_THAT(Get("/readyz"), StartsWith("HTTP/1.1 503"));
  EXPECT_THAT(Get("/livez"), StartsWith("HTTP/1.1 200"));
}

TEST_F(MetricsListenerTest, WhatIsNoSuchRequestIsRefused) {
  EXPECT_THAT(Get("/none"), StartsWith("HTTP/1.1 404"));
  EXPECT_THAT(Get("/metricsandmore"), StartsWith("HTTP/1.1 404"));
  EXPECT_THAT(Ask("POST /livez HTTP/1.1\r\n\r\n"), HasSubstr("\r\nAllow: GET, HEAD\r\n"));
  for (const char* const request :
       {"\r\n\r\n", "GET\r\n\r\n", "GET /livez\r\n\r\n", "GET /livez HTTP/2\r\n\r\n",
        "GET  /livez HTTP/1.1\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"}) {
    EXPECT_THAT(Ask(request), StartsWith("HTTP/1.1 400")) << request;
  }
}

TEST_F(MetricsListenerTest, ARequestHasAnEnd) {
  const std::string begin = "GET /livez HTTP/1.1\r\nA: ";
  const std::string most(MetricsListener::kMaxRequestBytes - begin.size() - 4, 'a');
  EXPECT_THAT(Ask(begin + most + "\r\n\r\n"), StartsWith("HTTP/1.1 200"));
  const FileDescriptor socket = Connect();
  ASSERT_TRUE(Say(socket, begin));
  const std::string piece(1 << 16, 'a');
  while (Say(socket, piece)) {
  }
}

TEST_F(MetricsListenerTest, ARequestThatIsSentSlowlyIsNotWaitedFor) {
  const FileDescriptor silent = Connect();
  const FileDescriptor slow = Connect();
  ASSERT_TRUE(Say(slow, "GET /livez HTTP/1.1\r\nA: "));
  std::thread drip([&] {
    while (Say(slow, "a")) absl::SleepFor(absl::Milliseconds(20));
  });
  EXPECT_EQ(Hear(silent), "");
  EXPECT_EQ(Hear(slow), "");
  drip.join();
}

TEST_F(MetricsListenerTest, ProbesAreAnsweredBesideMoreConnectionsThanThereMayBe) {
  std::vector<FileDescriptor> silent;
  for (size_t i = 0; i < 10 * MetricsListener::kMaxConnections; ++i) {
    silent.push_back(Connect());
    if (i % 2 == 0) {
      Say(silent.back(), "GET /livez HTTP/1.1\r\n");
    }
    if (i % MetricsListener::kMaxConnections == 0) {
      EXPECT_THAT(Get("/livez"), StartsWith("HTTP/1.1 200"));
    }
  }
  EXPECT_THAT(Get("/metrics"), StartsWith("HTTP/1.1 200"));
  // The first ones had to make room.
  EXPECT_EQ(Hear(silent.front()), "");
}

TEST_F(MetricsListenerTest, ProbesAreAnsweredBesidePeersThatDoNotReadTheirAnswers) {
  padding_ = 16 << 20;
  std::vector<FileDescriptor> deaf;
  for (size_t i = 0; i < MetricsListener::kMaxConnections + 5; ++i) {
    deaf.push_back(Connect());
    ASSERT_TRUE(Say(deaf.back(), "GET /metrics HTTP/1.1\r\n\r\n"));
    EXPECT_THAT(Get("/livez"), StartsWith("HTTP/1.1 200"));
  }
}

TEST_F(MetricsListenerTest, ProbesDoNotWaitForMetrics) {
  slow_ = true;
  const FileDescriptor first = Connect();
  ASSERT_TRUE(Say(first, "GET /metrics HTTP/1.1\r\n\r\n"));
  collecting_.Wait();
  EXPECT_THAT(Get("/livez"), StartsWith("HTTP/1.1 200"));
  // All that ask meanwhile get what is collected next.
  std::vector<FileDescriptor> others;
  for (int i = 0; i < 10; ++i) {
    others.push_back(Connect());
    ASSERT_TRUE(Say(others.back(), "GET /metrics HTTP/1.1\r\n\r\n"));
  }
  EXPECT_THAT(Get("/livez"), StartsWith("HTTP/1.1 200"));
  EXPECT_EQ(collections_, 1);
  slow_ = false;
  release_.Set();
  EXPECT_THAT(Hear(first), EndsWith("one 1\n"));
  for (const FileDescriptor& other : others) EXPECT_THAT(Hear(other), EndsWith("one 1\n"));
  EXPECT_EQ(collections_, 2);
}

TEST_F(MetricsListenerTest, APeerThatLeavesIsForgotten) {
  slow_ = true;
  {
    const FileDescriptor leaver = Connect();
    ASSERT_TRUE(Say(leaver, "GET /metrics HTTP/1.1\r\n\r\n"));
    collecting_.Wait();
    Connect();
  }
  release_.Set();
  slow_ = false;
  EXPECT_THAT(Get("/metrics"), EndsWith("one 1\n"));
}

TEST(MetricsListenerStartTest, APortThatIsTakenIsNamed) {
  const auto start = [](const std::string& address) {
    return MetricsListener::Start(
        address, [] { return std::string(); }, [] { return true; });
  };
  const auto first = start("127.0.0.1:0");
  ASSERT_TRUE(first.ok());
  const std::string address = absl::StrCat("127.0.0.1:", (*first)->port());
  EXPECT_THAT(std::string(start(address).status().message()),
              StartsWith("metrics_listen: cannot listen on " + address));
}

}  // namespace
}  // namespace nni_compression::server
