// Checks of addresses to listen on.
#ifndef NNI_COMPRESSION_SERVER_NET_LISTEN_ADDRESS_H_
#define NNI_COMPRESSION_SERVER_NET_LISTEN_ADDRESS_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace nni_compression::server {

// "unix:PATH" or "unix-abstract:NAME".
bool IsUnixAddress(absl::string_view address);

// INVALID_ARGUMENT unless `address` is a Unix socket or HOST:PORT, and the host is this machine's
// loopback ("localhost", 127.x.x.x, [::1]) or `allow_any` is set. `flag` and `instead`, which says
// what to do, are for the message.
absl::Status CheckListenAddress(absl::string_view address, bool allow_any,
                                absl::string_view flag = "listen",
                                absl::string_view instead = "listen on 127.0.0.1");

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_NET_LISTEN_ADDRESS_H_
