#include "server/net/network.h"

#include <gtest/gtest.h>

namespace nni_compression::server {
namespace {

bool Has(const char* network, const char* peer) { return Network::Parse(network)->Has(peer); }

TEST(NetworkTest, HasThePeersOfItsAddresses) {
  EXPECT_TRUE(Has("10.0.0.7", "ipv4:10.0.0.7:4711"));
  EXPECT_FALSE(Has("10.0.0.7", "ipv4:10.0.0.8:4711"));
  EXPECT_TRUE(Has("10.1.0.0/16", "ipv4:10.1.255.1:1"));
  EXPECT_FALSE(Has("10.1.0.0/16", "ipv4:10.2.0.1:1"));
  EXPECT_TRUE(Has("10.1.128.0/17", "ipv4:10.1.129.1:1"));
  EXPECT_FALSE(Has("10.1.128.0/17", "ipv4:10.1.127.1:1"));
  EXPECT_TRUE(Has("0.0.0.0/0", "ipv4:1.2.3.4:1"));
  EXPECT_FALSE(Has("0.0.0.0/0", "ipv6:[fd00::1]:1")) << "of the other family";
  EXPECT_TRUE(Has("::1", "ipv6:%5B::1%5D:4711"));
  EXPECT_TRUE(Has("fd00::/8", "ipv6:[fd12::3]:1"));
  EXPECT_FALSE(Has("fd00::/8", "ipv6:[fe80::3]:1"));
  EXPECT_TRUE(Has("10.0.0.7", "ipv6:[::ffff:10.0.0.7]:1"));
}

TEST(NetworkTest, HasUnixSocketsWhereItSaysSo) {
  EXPECT_TRUE(Has("unix", "unix:"));
  EXPECT_TRUE(Has("unix", "unix:/run/x"));
  EXPECT_FALSE(Has("unix", "ipv4:127.0.0.1:1"));
  EXPECT_FALSE(Has("127.0.0.1", "unix:"));
}

TEST(NetworkTest, NeverHasWhatItCannotRead) {
  for (const char* peer : {"", "ipv4:", "ipv4:10.0.0:1", "10.0.0.7:1", "ipv6:[::1", "unknown"}) {
    EXPECT_FALSE(Has("0.0.0.0/0", peer)) << peer;
    EXPECT_FALSE(Has("unix", peer)) << peer;
  }
  for (const char* bad : {"", "10.0.0", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/-1",
                          "proxy.example.com", "10.0.0.0/8/8", "10.0.0.1:80"}) {
    EXPECT_EQ(Network::Parse(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

}  // namespace
}  // namespace nni_compression::server
