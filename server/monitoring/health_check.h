// A client of a server's health service.
#ifndef NNI_COMPRESSION_SERVER_MONITORING_HEALTH_CHECK_H_
#define NNI_COMPRESSION_SERVER_MONITORING_HEALTH_CHECK_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace nni_compression::server {

// OK when the health service at `address`, HOST:PORT, reports SERVING within `timeout`, or refuses
// the call for lack of a token, which proves that the server runs. UNAVAILABLE when it drains or
// does not answer. Does not support TLS. If `address` is a URL, http://HOST:PORT/PATH, that probe
// is used instead. Blocks.
absl::Status CheckHealth(const std::string& address, absl::Duration timeout);

// The address at which a server on this machine that listens on `listen`, HOST:PORT, is reached:
// loopback if it listens on all addresses.
std::string LocalAddress(absl::string_view listen);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_MONITORING_HEALTH_CHECK_H_
