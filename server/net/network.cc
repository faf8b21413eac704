#include "server/net/network.h"

#include <arpa/inet.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace nni_compression::server {
namespace {

using Address = std::array<uint8_t, 16>;

constexpr int kMappedBits = 96;

bool IsV4(const std::string& text, Address* address) {
  *address = {};
  (*address)[10] = (*address)[11] = 0xff;
  return inet_pton(AF_INET, text.c_str(), address->data() + 12) == 1;
}

std::optional<Address> ReadAddress(const std::string& text) {
  Address address;
  if (IsV4(text, &address)) return address;
  if (inet_pton(AF_INET6, text.c_str(), address.data()) == 1) return address;
  return std::nullopt;
}

std::optional<Address> AddressOfPeer(absl::string_view peer) {
  if (!absl::ConsumePrefix(&peer, "ipv4:") && !absl::ConsumePrefix(&peer, "ipv6:")) {
    return std::nullopt;
  }
  std::string host(peer.substr(0, peer.rfind(':')));
  host = absl::StrReplaceAll(host, {{"%5B", ""}, {"%5D", ""}, {"[", ""}, {"]", ""}});
  return ReadAddress(host);
}

}  // namespace

absl::StatusOr<Network> Network::Parse(absl::string_view text) {
  Network network;
  network.unix_ = text == "unix";
  if (network.unix_) return network;
  const std::pair<std::string, std::string> parts = absl::StrSplit(text, absl::MaxSplits('/', 1));
  const std::optional<Address> address = ReadAddress(parts.first);
  Address unused;
  const int offset = IsV4(parts.first, &unused) ? kMappedBits : 0;
  int bits = 128 - offset;
  if (!address || (absl::StrContains(text, '/') &&
                   (!absl::SimpleAtoi(parts.second, &bits) || bits < 0 || bits > 128 - offset))) {
    return absl::InvalidArgumentError(absl::StrCat(
        "'", text,
        "' is not an address or network; it must be like 10.0.0.7, 10.1.0.0/16, fd00::/8 or unix"));
  }
  network.address_ = *address;
  network.bits_ = offset + bits;
  return network;
}

bool Network::Has(absl::string_view peer) const {
  if (unix_) return absl::StartsWith(peer, "unix:");
  const std::optional<Address> address = AddressOfPeer(peer);
  if (!address) return false;
  for (int bit = 0; bit < bits_; ++bit) {
    const uint8_t mask = static_cast<uint8_t>(0x80 >> (bit % 8));
    if (((*address)[bit / 8] ^ address_[bit / 8]) & mask) return false;
  }
  return true;
}

}  // namespace nni_compression::server
