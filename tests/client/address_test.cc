#include "client/cpp/address.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>

#include "nni_compression/client.h"

namespace nni_compression::internal {
namespace {

using ::testing::HasSubstr;

TEST(AddressTest, TakesWhatGrpcConnectsTo) {
  for (const char* address :
       {"127.0.0.1:50051", "localhost:1", "host.example:65535", "[::1]:50051", "dns:host:50051",
        "dns:///host:50051", "dns://10.0.0.1/host:50051", "ipv4:10.0.0.1:1,10.0.0.2:2",
        "ipv6:[::1]:50051", "unix:/run/compression", "unix:relative", "unix-abstract:compression",
        "xds:///service"}) {
    EXPECT_EQ(CheckAddress(address), absl::OkStatus()) << address;
  }
}

TEST(AddressTest, RefusesWhatCannotBeMeantAndNamesIt) {
  for (const char* address : {"127.0.0.1",
                              "localhost",
                              "localhost:",
                              ":50051",
                              "localhost:50051x",
                              "localhost:0",
                              "localhost:-1",
                              "localhost:+5",
                              "localhost:65536",
                              "localhost:0x50",
                              "localhost:50 051",
                              "::1:50051",
                              "[::1]",
                              "http://localhost:50051",
                              "localhost:50051/",
                              "dns:///host",
                              "dns://host:50051",
                              "ipv4:10.0.0.1:1,10.0.0.2",
                              "unix:",
                              " localhost:50051",
                              "a\nb:1"}) {
    const absl::Status status = CheckAddress(address);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << address;
    EXPECT_THAT(status.message(), HasSubstr("it must be HOST:PORT with a port in [1, 65535]"));
  }
  EXPECT_THAT(CheckAddress("localhost:50051x").message(), HasSubstr("'localhost:50051x'"));
}

TEST(AddressTest, TellsLoopbackFromOtherHosts) {
  for (const char* address : {"localhost:1", "127.0.0.1:50051", "127.255.255.254:1", "[::1]:1",
                              "unix:/run/x", "unix-abstract:x", "dns:///localhost:1",
                              "dns:localhost:1", "ipv4:127.0.0.1:1,127.0.0.2:1", "ipv6:[::1]:1"}) {
    EXPECT_TRUE(IsLoopback(address)) << address;
  }
  for (const char* address :
       {"example.com:1", "127.example.com:1", "localhost.example.com:1", "10.0.0.7:1",
        "[fd00::1]:1", "ipv4:127.0.0.1:1,10.0.0.7:1", "dns://10.0.0.7/localhost:1",
        "127.0.0.1.example.com:1", "xds:///localhost:1"}) {
    EXPECT_FALSE(IsLoopback(address)) << address;
  }
}

TEST(AddressTest, TheSocketOfAPortIsLookedForOnThisHostOnly) {
  for (const char* address :
       {"localhost:50051", "127.0.0.1:50051", "[::1]:50051", "dns:///localhost:50051",
        "dns:localhost:50051", "ipv4:127.0.0.1:50051", "ipv6:[::1]:50051"}) {
    EXPECT_EQ(LoopbackPort(address), 50051) << address;
  }
  for (const char* address :
       {"unix:/run/x:1", "unix-abstract:x:1", "example.com:1", "ipv4:127.0.0.1:1,127.0.0.2:1",
        "dns://10.0.0.7/localhost:1", "xds:///localhost:1"}) {
    EXPECT_EQ(LoopbackPort(address), std::nullopt) << address;
  }
}

TEST(AddressTest, NobodyWaitsForAnAddressThatIsNone) {
  ClientOptions options;
  options.connect_timeout = absl::InfiniteDuration();  // it would not end
  EXPECT_EQ(Client::Connect("127.0.0.1", options).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace nni_compression::internal
