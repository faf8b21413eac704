// The protocol of one connection to the shared-memory socket, without the socket itself.
#ifndef NNI_COMPRESSION_SERVER_SHM_SOCKET_CONNECTION_H_
#define NNI_COMPRESSION_SERVER_SHM_SOCKET_CONNECTION_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nni/compression/v1/compression.pb.h"
#include "server/auth/authenticator.h"
#include "server/platform/file_descriptor.h"
#include "server/shm/region_table.h"

namespace nni_compression::server {

// Answers the requests of one connection and owns its regions, which the destructor removes from
// the table. Thread-compatible.
class SocketConnection {
 public:
  struct Limits {
    int regions = 64;
    int64_t bytes = 0;  // of all regions together
  };

  // Larger packets are refused.
  static constexpr size_t kMaxPacketBytes = 16 << 10;

  // Both outlive the connection.
  SocketConnection(const Limits& limits, Authenticator* authenticator, RegionTable* table)
      : limits_(limits), authenticator_(authenticator), table_(table) {}
  ~SocketConnection();
  SocketConnection(const SocketConnection&) = delete;
  SocketConnection& operator=(const SocketConnection&) = delete;

  struct Answer {
    nni::compression::v1::SideReply reply;
    bool close = false;  // after sending the reply
  };

  // Handles one packet with its files, which may be closed afterwards. Takes microseconds, mapping
  // included.
  Answer Handle(absl::string_view packet, const std::vector<FileDescriptor>& files);

  // Whether the connection is authenticated.
  bool admitted() const { return admitted_; }

 private:
  absl::Status Hello(const nni::compression::v1::SideRequest::Hello& hello,
                     nni::compression::v1::SideReply* reply);
  absl::Status AddRegion(const nni::compression::v1::SideRequest::AddRegion& request,
                         const std::vector<FileDescriptor>& files,
                         nni::compression::v1::SideReply* reply);
  absl::Status DropRegion(const std::string& id);

  const Limits limits_;
  Authenticator* const authenticator_;
  RegionTable* const table_;
  bool admitted_ = false;
  std::string tenant_;
  absl::flat_hash_map<std::string, int64_t> regions_;  // by id, with their sizes
  int64_t bytes_ = 0;                                  // of regions_
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_SHM_SOCKET_CONNECTION_H_
