// TCP sockets that listen.
#ifndef NNI_COMPRESSION_SERVER_NET_LISTENING_SOCKETS_H_
#define NNI_COMPRESSION_SERVER_NET_LISTENING_SOCKETS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/platform/file_descriptor.h"

namespace nni_compression::server {

struct ListeningSockets {
  int port = 0;                         // one for all of them
  std::vector<FileDescriptor> sockets;  // do not block; at least one
};

// Listens on all addresses that `address`, HOST:PORT, stands for; port 0 picks one. A peer that
// does not acknowledge what was sent for `user_timeout` loses its connection. UNAVAILABLE where
// none of them can be listened on, or the port is taken.
absl::StatusOr<ListeningSockets> ListenOnHost(const std::string& address,
                                              absl::Duration user_timeout);

// Whether accept, or another call that makes a descriptor, failed with this errno for want of
// resources, so that it makes no sense to try again at once.
bool IsOutOfDescriptors(int error);

// Connections wait in the kernel for this long then.
inline constexpr absl::Duration kAcceptPause = absl::Milliseconds(100);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_NET_LISTENING_SOCKETS_H_
