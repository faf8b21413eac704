// Listening TCP sockets.
#ifndef NNI_COMPRESSION_SERVER_NET_LISTENING_SOCKETS_H_
#define NNI_COMPRESSION_SERVER_NET_LISTENING_SOCKETS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/platform/file_descriptor.h"

namespace nni_compression::server {

struct ListeningSockets {
  int port = 0;                         // the same for all of them
  std::vector<FileDescriptor> sockets;  // non-blocking; at least one
};

// Listens on all addresses of `address`, HOST:PORT; port 0 picks one. A peer that does not
// acknowledge data for `user_timeout` loses its connection. UNAVAILABLE when it can listen on none
// of them, or the port is in use.
absl::StatusOr<ListeningSockets> ListenOnHost(const std::string& address,
                                              absl::Duration user_timeout);

// Whether accept, or another call that creates a descriptor, failed with this errno for lack of
// resources, so that it should not be retried at once.
bool IsOutOfDescriptors(int error);

// Connections then wait in the kernel for this long.
inline constexpr absl::Duration kAcceptPause = absl::Milliseconds(100);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_NET_LISTENING_SOCKETS_H_
