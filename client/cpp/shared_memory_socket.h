// The client's end of the shared-memory socket, and the files that it passes.
#ifndef NNI_COMPRESSION_CLIENT_CPP_SHARED_MEMORY_SOCKET_H_
#define NNI_COMPRESSION_CLIENT_CPP_SHARED_MEMORY_SOCKET_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nni/compression/v1/compression.pb.h"

namespace nni_compression::internal {

namespace v1 = ::nni::compression::v1;

// A sealed file of shared memory, fully allocated and mapped writable. Thread-compatible.
class SharedFile {
 public:
  // RESOURCE_EXHAUSTED when there is not enough memory.
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

// A connection to the server's shared-memory socket. Thread-compatible; every call waits for its
// reply, for a few seconds at most.
class SharedMemorySocket {
 public:
  // Connects and sends the hello. UNAVAILABLE when no process listens there; PERMISSION_DENIED,
  // before anything is sent, when the listener may not be the server.
  static absl::StatusOr<std::shared_ptr<SharedMemorySocket>> Connect(
      const std::string& path, const std::string& authorization);
  ~SharedMemorySocket();

  // Bytes that may be shared at the same time.
  int64_t max_bytes() const { return max_bytes_; }

  // Whether the server has closed the connection, or a request went without its reply.
  bool broken() const;

  // Passes a file and returns the id of its region.
  absl::StatusOr<std::string> AddRegion(const SharedFile& file, bool writable);
  absl::Status DropRegion(const std::string& id);

 private:
  explicit SharedMemorySocket(int fd) : fd_(fd) {}
  absl::StatusOr<v1::SideReply> Ask(const v1::SideRequest& request, int file = -1);

  const int fd_;
  bool failed_ = false;
  int64_t max_bytes_ = 0;
};

}  // namespace nni_compression::internal

#endif  // NNI_COMPRESSION_CLIENT_CPP_SHARED_MEMORY_SOCKET_H_
