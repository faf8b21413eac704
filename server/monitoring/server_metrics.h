// The server's metrics, for Prometheus.
#ifndef NNI_COMPRESSION_SERVER_MONITORING_SERVER_METRICS_H_
#define NNI_COMPRESSION_SERVER_MONITORING_SERVER_METRICS_H_

#include <prometheus/metric_family.h>

#include <vector>

#include "server/calls/components.h"

namespace nni_compression::server {

// All metrics: the counters of calls, and current values of the components. docs/operations.md
// describes each. Takes a millisecond with ten thousand sessions. Any thread.
std::vector<prometheus::MetricFamily> CollectMetrics(const Components& components);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_MONITORING_SERVER_METRICS_H_
