#include "client/cpp/address.h"

#include <algorithm>
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

}  // namespace

absl::Status CheckAddress(absl::string_view address) {
  if (IsAddress(address)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the server's address is '", absl::CHexEscape(address),
                   "'; it must be HOST:PORT with a port in [1, 65535], such as 127.0.0.1:50051 or "
                   "[::1]:50051, or unix:PATH"));
}

}  // namespace nni_compression::internal
