// A trainer's end of the side socket, which does as it is told.
#ifndef NNI_COMPRESSION_TESTS_TESTING_SHM_SOCKET_CLIENT_H_
#define NNI_COMPRESSION_TESTS_TESTING_SHM_SOCKET_CLIENT_H_

#include <string>
#include <vector>

#include "nni/compression/v1/compression.pb.h"
#include "server/platform/file_descriptor.h"

namespace nni_compression::testing {

// Thread-compatible.
class ShmSocketClient {
 public:
  // Connects; see connected().
  explicit ShmSocketClient(const std::string& path);

  bool connected() const { return connected_; }
  int fd() const { return socket_.get(); }

  // Sends a packet with files, and says whether the socket took it.
  bool Send(const std::string& packet, const std::vector<int>& files = {});

  // The next reply; code -1 when the server closed the connection. Waits for it.
  nni::compression::v1::SideReply Receive();

  // Whether the server closes the connection without a word more. Waits for it.
  bool IsClosed() { return Receive().code() == -1; }

  nni::compression::v1::SideReply Hello(const std::string& tenant = "");
  nni::compression::v1::SideReply AddRegion(int file, uint64_t byte_length, bool writable);
  nni::compression::v1::SideReply DropRegion(const std::string& id);

  void Close() { socket_.Reset(); }

 private:
  server::FileDescriptor socket_;
  bool connected_ = false;
};

// A path for a socket that nobody else has.
std::string ShmSocketPath();

nni::compression::v1::SideRequest HelloRequest(const std::string& tenant = "");
nni::compression::v1::SideRequest AddRegionRequest(uint64_t byte_length, bool writable);

}  // namespace nni_compression::testing

#endif  // NNI_COMPRESSION_TESTS_TESTING_SHM_SOCKET_CLIENT_H_
