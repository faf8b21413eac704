#include "server/net/listen_address.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace nni_compression::server {
namespace {

TEST(ListenAddressTest, OnlyLoopbackIsAllowedUnlessToldOtherwise) {
  for (const char* good : {"127.0.0.1:0", "127.1.2.3:50051", "localhost:1", "[::1]:65535",
                           "unix:/run/compression", "unix-abstract:compression"}) {
    EXPECT_TRUE(CheckListenAddress(good, false).ok()) << good;
  }
  for (const char* wide : {"0.0.0.0:50051", "[::]:50051", "192.168.1.1:1", "example.com:1"}) {
    EXPECT_EQ(CheckListenAddress(wide, false).code(), absl::StatusCode::kInvalidArgument) << wide;
    EXPECT_TRUE(CheckListenAddress(wide, true).ok()) << wide;
  }
  for (const char* bad :
       {"", "127.0.0.1", ":50051", "127.0.0.1:x", "127.0.0.1:65536", "h:-1", "unix:"}) {
    const absl::Status refused = CheckListenAddress(bad, true, "metrics_listen");
    EXPECT_THAT(std::string(refused.message()), ::testing::StartsWith("metrics_listen is '"));
    EXPECT_EQ(CheckListenAddress(bad, true).code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

}  // namespace
}  // namespace nni_compression::server
