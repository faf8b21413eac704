// One trainer's connection to the side socket, without the socket.
#ifndef NNI_COMPRESSION_SERVER_SHM_SIDE_CONNECTION_H_
#define NNI_COMPRESSION_SERVER_SHM_SIDE_CONNECTION_H_

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

// Answers the requests of one connection, and owns its regions: they leave the table when it is
// destroyed. Thread-compatible.
class SideConnection {
 public:
  struct Limits {
    int regions = 64;
    int64_t bytes = 0;  // of all regions together
  };

  // Packets above this are refused.
  static constexpr size_t kMaxPacketBytes = 16 << 10;

  // Both outlive the connection.
  SideConnection(const Limits& limits, Authenticator* authenticator, RegionTable* table)
      : limits_(limits), authenticator_(authenticator), table_(table) {}
  ~SideConnection();
  SideConnection(const SideConnection&) = delete;
  SideConnection& operator=(const SideConnection&) = delete;

  struct Answer {
    nni::compression::v1::SideReply reply;
    bool close = false;  // once the reply is sent
  };

  // One packet with the files that came with it, which nobody needs afterwards. Mapping a file
  // takes microseconds.
  Answer Handle(absl::string_view packet, const std::vector<FileDescriptor>& files);

  // The authenticator let it in.
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

#endif  // NNI_COMPRESSION_SERVER_SHM_SIDE_CONNECTION_H_
