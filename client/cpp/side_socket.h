// The client's end of the side socket, and the files that it passes.
#ifndef NNI_COMPRESSION_CLIENT_CPP_SIDE_SOCKET_H_
#define NNI_COMPRESSION_CLIENT_CPP_SIDE_SOCKET_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nni/compression/v1/compression.pb.h"

namespace nni_compression::internal {

namespace v1 = ::nni::compression::v1;

// A sealed file of shared memory without holes, mapped writable. Thread-compatible.
class SharedFile {
 public:
  // RESOURCE_EXHAUSTED when there is no memory for it.
  static absl::StatusOr<SharedFile> Create(int64_t size);

  SharedFile(SharedFile&& other) noexcept { *this = std::move(other); }
  SharedFile& operator=(SharedFile&& other) noexcept;
  ~SharedFile();

  uint8_t* data() const { return data_; }
  int64_t size() const { return size_; }
  int fd() const { return fd_; }

 private:
  SharedFile() = default;

  int fd_ = -1;
  uint8_t* data_ = nullptr;
  int64_t size_ = 0;
};

// A connection to the server's side socket. Thread-compatible; every call waits for its answer, for
// a few seconds at most.
class SideSocket {
 public:
  // Connects and says hello. UNAVAILABLE when nobody listens there, PERMISSION_DENIED, with nothing
  // said, when it may be somebody else than the server.
  static absl::StatusOr<std::shared_ptr<SideSocket>> Connect(const std::string& path,
                                                             const std::string& authorization);
  ~SideSocket();

  // Bytes that may be shared at a time.
  int64_t max_bytes() const { return max_bytes_; }

  // Whether the server has closed the connection.
  bool broken() const;

  // Passes a file; the region's id.
  absl::StatusOr<std::string> AddRegion(const SharedFile& file, bool writable);
  absl::Status DropRegion(const std::string& id);

 private:
  explicit SideSocket(int fd) : fd_(fd) {}
  absl::StatusOr<v1::SideReply> Ask(const v1::SideRequest& request, int file = -1);

  const int fd_;
  int64_t max_bytes_ = 0;
};

}  // namespace nni_compression::internal

#endif  // NNI_COMPRESSION_CLIENT_CPP_SIDE_SOCKET_H_
