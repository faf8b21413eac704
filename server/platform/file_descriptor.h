// A file descriptor that closes itself.
#ifndef NNI_COMPRESSION_SERVER_PLATFORM_FILE_DESCRIPTOR_H_
#define NNI_COMPRESSION_SERVER_PLATFORM_FILE_DESCRIPTOR_H_

#include <unistd.h>

#include <utility>

namespace nni_compression::server {

// Thread-compatible.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    Reset();
    fd_ = std::exchange(other.fd_, -1);
    return *this;
  }
  ~FileDescriptor() { Reset(); }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  void Reset() {
    if (fd_ >= 0) close(std::exchange(fd_, -1));
  }

 private:
  int fd_ = -1;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_PLATFORM_FILE_DESCRIPTOR_H_
