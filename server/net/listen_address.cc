#include "server/net/listen_address.h"

#include <arpa/inet.h>

#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace nni_compression::server {
namespace {

bool IsLoopback(const std::string& host) {
  in_addr v4;
  if (inet_pton(AF_INET, host.c_str(), &v4) == 1) return (ntohl(v4.s_addr) >> 24) == 127;
  in6_addr v6;
  if (inet_pton(AF_INET6, host.c_str(), &v6) == 1) return IN6_IS_ADDR_LOOPBACK(&v6);
  return host == "localhost";
}

}  // namespace

bool IsUnixAddress(absl::string_view address) {
  for (const absl::string_view scheme : {"unix:", "unix-abstract:"}) {
    if (absl::ConsumePrefix(&address, scheme)) return !address.empty();
  }
  return false;
}

absl::Status CheckListenAddress(absl::string_view address, bool allow_any, absl::string_view flag,
                                absl::string_view instead) {
  // Local to this host. The mode of a socket file limits who may connect; an abstract name, like
  // loopback, is open to every user.
  if (IsUnixAddress(address)) return absl::OkStatus();
  const size_t colon = address.rfind(':');
  int port = -1;
  if (colon == absl::string_view::npos || colon == 0 ||
      !absl::SimpleAtoi(address.substr(colon + 1), &port) || port < 0 || port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat(
        flag, " is '", address, "'; it must be HOST:PORT with a port in [0, 65535], or unix:PATH"));
  }
  absl::string_view host = address.substr(0, colon);
  if (absl::ConsumePrefix(&host, "[")) absl::ConsumeSuffix(&host, "]");
  if (allow_any || IsLoopback(std::string(host))) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(flag, " is '", address, "', which other machines can reach; ", instead));
}

}  // namespace nni_compression::server
