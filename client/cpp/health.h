// grpc.health.v1's Check.
#ifndef NNI_COMPRESSION_CLIENT_CPP_HEALTH_H_
#define NNI_COMPRESSION_CLIENT_CPP_HEALTH_H_

#include <string>

#include "absl/time/time.h"
#include "client/cpp/connection.h"

namespace nni_compression::internal {

// OK when the server is serving; UNAVAILABLE when it answers that it is not.
Outcome CheckHealth(const Connection& connection, absl::Time deadline, const Route& route);

}  // namespace nni_compression::internal

#endif  // NNI_COMPRESSION_CLIENT_CPP_HEALTH_H_
