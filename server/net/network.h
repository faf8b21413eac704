// Networks of peers.
#ifndef NNI_COMPRESSION_SERVER_NET_NETWORK_H_
#define NNI_COMPRESSION_SERVER_NET_NETWORK_H_

#include <array>
#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace nni_compression::server {

// An address, a network, or the Unix sockets of this host. Immutable.
class Network {
 public:
  // "10.0.0.7", "10.1.0.0/16", "fd00::/8" or "unix". INVALID_ARGUMENT for anything else.
  static absl::StatusOr<Network> Parse(absl::string_view text);

  // Whether it contains a peer, in gRPC's notation: "ipv4:10.0.0.7:4711", "ipv6:%5B::1%5D:4711",
  // "unix:". False for a name that cannot be parsed.
  bool Has(absl::string_view peer) const;

 private:
  bool unix_ = false;
  std::array<uint8_t, 16> address_ = {};  // IPv4 as ::ffff:0:0/96
  int bits_ = 128;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_NET_NETWORK_H_
