// A client of an HTTP probe.
#ifndef NNI_COMPRESSION_SERVER_MONITORING_HTTP_PROBE_H_
#define NNI_COMPRESSION_SERVER_MONITORING_HTTP_PROBE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace nni_compression::server {

// OK when a GET of `url`, http://HOST:PORT/PATH, returns 200. UNAVAILABLE for another status, or
// when a step takes longer than `timeout`; INVALID_ARGUMENT for another form of URL. Blocks.
absl::Status AskProbe(const std::string& url, absl::Duration timeout);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_MONITORING_HTTP_PROBE_H_
