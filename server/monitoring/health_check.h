// Asks a server how it is, from outside.
#ifndef NNI_COMPRESSION_SERVER_MONITORING_HEALTH_CHECK_H_
#define NNI_COMPRESSION_SERVER_MONITORING_HEALTH_CHECK_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace nni_compression::server {

// OK when the health service at `address`, HOST:PORT, says within `timeout` that the server serves,
// or when the server lets nobody ask without a token, which it says itself. UNAVAILABLE when it
// drains or nobody answers. Does not speak TLS. With `address` being a URL, http://HOST:PORT/PATH,
// the probe there is asked instead. Waits.
absl::Status CheckHealth(const std::string& address, absl::Duration timeout);

// Where a server on this machine that listens on `listen`, HOST:PORT, is reached: at loopback when
// it listens everywhere.
std::string LocalAddress(absl::string_view listen);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_MONITORING_HEALTH_CHECK_H_
