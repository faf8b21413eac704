#include "client/cpp/address.h"

#include <arpa/inet.h>

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace nni_compression::internal {
namespace {

bool HasHostAndPort(absl::string_view endpoint) {
  const size_t colon = endpoint.rfind(':');
  if (colon == absl::string_view::npos || colon == 0) return false;
  const absl::string_view host = endpoint.substr(0, colon);
  const absl::string_view port = endpoint.substr(colon + 1);
  const bool bracketed = absl::StartsWith(host, "[") && absl::EndsWith(host, "]");
  if (absl::StrContains(host, "/") || (absl::StrContains(host, ":") && !bracketed)) return false;
  int number = 0;
  return port.size() <= 5 && std::all_of(port.begin(), port.end(), absl::ascii_isdigit) &&
         absl::SimpleAtoi(port, &number) && number > 0 && number < 65536;
}

bool IsAddress(absl::string_view address) {
  if (!std::all_of(address.begin(), address.end(), absl::ascii_isgraph)) return false;
  for (const absl::string_view scheme : {"unix:", "unix-abstract:", "vsock:", "xds:"}) {
    if (absl::ConsumePrefix(&address, scheme)) return !address.empty();
  }
  // One HOST:PORT follows, or several.
  for (const absl::string_view scheme : {"dns:", "ipv4:", "ipv6:"}) {
    if (!absl::ConsumePrefix(&address, scheme)) continue;
    if (absl::ConsumePrefix(&address, "//")) {  // an authority, which may be empty
      const size_t slash = address.find('/');
      address = slash == absl::string_view::npos ? "" : address.substr(slash + 1);
    }
    const std::vector<absl::string_view> endpoints = absl::StrSplit(address, ',');
    return std::all_of(endpoints.begin(), endpoints.end(), HasHostAndPort);
  }
  return HasHostAndPort(address);
}

// Of an address's HOST:PORT.
bool HasLoopbackHost(absl::string_view endpoint) {
  absl::string_view part = endpoint.substr(0, endpoint.rfind(':'));
  if (absl::ConsumePrefix(&part, "[")) absl::ConsumeSuffix(&part, "]");
  const std::string host(part);
  in_addr v4;
  if (inet_pton(AF_INET, host.c_str(), &v4) == 1) return (ntohl(v4.s_addr) >> 24) == 127;
  in6_addr v6;
  if (inet_pton(AF_INET6, host.c_str(), &v6) == 1) return IN6_IS_ADDR_LOOPBACK(&v6);
  return host == "localhost";
}

// Without an authority other than an empty one, no such address is a loopback one.
absl::string_view WithoutScheme(absl::string_view address) {
  for (const absl::string_view scheme : {"dns:///", "dns:", "ipv4:", "ipv6:"}) {
    if (absl::ConsumePrefix(&address, scheme)) break;
  }
  return address;
}

}  // namespace

absl::Status CheckAddress(absl::string_view address) {
  if (IsAddress(address)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the server's address is '", absl::CHexEscape(address),
                   "'; it must be HOST:PORT with a port in [1, 65535], such as 127.0.0.1:50051 or "
                   "[::1]:50051, or unix:PATH"));
}

bool IsLoopback(absl::string_view address) {
  if (absl::StartsWith(address, "unix:") || absl::StartsWith(address, "unix-abstract:")) {
    return true;
  }
  const std::vector<absl::string_view> endpoints = absl::StrSplit(WithoutScheme(address), ',');
  return std::all_of(endpoints.begin(), endpoints.end(), HasLoopbackHost);
}

std::optional<int> LoopbackPort(absl::string_view address) {
  const absl::string_view endpoint = WithoutScheme(address);
  int port;
  if (absl::StrContains(endpoint, ",") || !IsLoopback(address) ||
      absl::StartsWith(address, "unix") ||
      !absl::SimpleAtoi(endpoint.substr(endpoint.rfind(':') + 1), &port)) {
    return std::nullopt;
  }
  return port;
}

}  // namespace nni_compression::internal
