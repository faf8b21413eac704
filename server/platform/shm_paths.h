// Where a server offers its shared-memory socket by default, and clients on its host look for it.
#ifndef NNI_COMPRESSION_SERVER_PLATFORM_SHM_PATHS_H_
#define NNI_COMPRESSION_SERVER_PLATFORM_SHM_PATHS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace nni_compression::server {

// Paths of the socket of a server at this TCP port, best first: PORT.shm in
// $XDG_RUNTIME_DIR/nni-compression, /run/user/UID/nni-compression and /tmp/nni-compression-UID.
std::vector<std::string> ShmPathsOfPort(int port);

// Path of the socket of a server at unix:PATH.
std::string ShmPathOfSocket(absl::string_view path);

// Creates the folder of `path`, with mode 0700, unless it exists. FAILED_PRECONDITION when others
// than this user may look into it or created it, UNAVAILABLE when it cannot be created.
absl::Status MakePrivateFolderOf(const std::string& path);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_PLATFORM_SHM_PATHS_H_
