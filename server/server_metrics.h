// What a server did and is like, for Prometheus.
#ifndef NNI_COMPRESSION_SERVER_SERVER_METRICS_H_
#define NNI_COMPRESSION_SERVER_SERVER_METRICS_H_

#include <prometheus/metric_family.h>

#include <vector>

#include "server/core.h"

namespace nni_compression::server {

// All there is: what calls counted, and what its owners are asked for now. docs/operations.md says
// what each means. Takes a millisecond with ten thousand sessions. Any thread.
std::vector<prometheus::MetricFamily> CollectMetrics(const Core& core);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_SERVER_METRICS_H_
