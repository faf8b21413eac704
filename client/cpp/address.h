// Addresses of servers.
#ifndef NNI_COMPRESSION_CLIENT_CPP_ADDRESS_H_
#define NNI_COMPRESSION_CLIENT_CPP_ADDRESS_H_

#include <optional>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace nni_compression::internal {

// INVALID_ARGUMENT unless `address` is HOST:PORT, unix:PATH, or has another of gRPC's schemes, so
// that a mistyped one is refused before a connection is tried. gRPC itself assumes a port where
// none is given, and reads "50051x" as 50051.
absl::Status CheckAddress(absl::string_view address);

// Whether data sent to a valid address never leaves this host: a Unix socket,
// "localhost" or an address of the loopback interface. Names are not resolved.
bool IsLoopback(absl::string_view address);

// The port of a valid address whose only endpoint is one of the loopback interface.
std::optional<int> LoopbackPort(absl::string_view address);

}  // namespace nni_compression::internal

#endif  // NNI_COMPRESSION_CLIENT_CPP_ADDRESS_H_
