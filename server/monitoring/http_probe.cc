#include "server/monitoring/http_probe.h"

#include <httplib.h>

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace nni_compression::server {

absl::Status AskProbe(const std::string& url, absl::Duration timeout) {
  absl::string_view address = url;
  const bool is_http = absl::ConsumePrefix(&address, "http://");
  const std::string path(address.substr(std::min(address.size(), address.find('/'))));
  absl::ConsumeSuffix(&address, path);
  const size_t colon = std::min(address.size(), address.rfind(':'));
  absl::string_view host = address.substr(0, colon);
  if (absl::ConsumePrefix(&host, "[")) absl::ConsumeSuffix(&host, "]");
  int port;
  if (!is_http || path.empty() || host.empty() ||
      !absl::SimpleAtoi(absl::ClippedSubstr(address, colon + 1), &port)) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", url, "' is not the URL of a probe; it must be http://HOST:PORT/PATH"));
  }
  httplib::Client client(std::string(host), port);
  const timeval patience = absl::ToTimeval(timeout);
  client.set_connection_timeout(patience.tv_sec, patience.tv_usec);
  client.set_read_timeout(patience.tv_sec, patience.tv_usec);
  const httplib::Result reply = client.Get(path);
  if (!reply) {
    return absl::UnavailableError(
        absl::StrCat("no answer from ", url, ": ", httplib::to_string(reply.error())));
  }
  if (reply->status == 200) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(url, " answers ", reply->status));
}

}  // namespace nni_compression::server
