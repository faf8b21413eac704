// Asks a probe, from outside.
#ifndef NNI_COMPRESSION_SERVER_MONITORING_HTTP_PROBE_H_
#define NNI_COMPRESSION_SERVER_MONITORING_HTTP_PROBE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace nni_compression::server {

// OK when a GET of `url`, http://HOST:PORT/PATH, is answered with 200. UNAVAILABLE when it is
// answered otherwise, or a step of it takes longer than `timeout`; INVALID_ARGUMENT when the URL
// has another form. Waits.
absl::Status AskProbe(const std::string& url, absl::Duration timeout);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_MONITORING_HTTP_PROBE_H_
