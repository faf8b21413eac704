// Addresses of servers.
#ifndef NNI_COMPRESSION_CLIENT_CPP_ADDRESS_H_
#define NNI_COMPRESSION_CLIENT_CPP_ADDRESS_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace nni_compression::internal {

// INVALID_ARGUMENT unless `address` is HOST:PORT, unix:PATH, or has another of gRPC's schemes: one
// that cannot be meant is refused before anybody waits for it. Without a port gRPC tries another
// one, and of "50051x" it reads the digits.
absl::Status CheckAddress(absl::string_view address);

// Whether what is sent to an address that CheckAddress takes never leaves this host: a Unix socket,
// "localhost" or an address of the loopback interface. Names are not resolved.
bool IsLoopback(absl::string_view address);

}  // namespace nni_compression::internal

#endif  // NNI_COMPRESSION_CLIENT_CPP_ADDRESS_H_
