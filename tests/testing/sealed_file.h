// Files of shared memory as trainers make them, and as they should not.
#ifndef NNI_COMPRESSION_TESTS_TESTING_SEALED_FILE_H_
#define NNI_COMPRESSION_TESTS_TESTING_SEALED_FILE_H_

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

#include "server/platform/file_descriptor.h"

namespace nni_compression::testing {

constexpr int kBothSeals = F_SEAL_SHRINK | F_SEAL_GROW;

// A memfd of `size` bytes without holes, with these seals.
inline server::FileDescriptor SealedFile(int64_t size, int seals = kBothSeals) {
  server::FileDescriptor file(memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (posix_fallocate(file.get(), 0, size) != 0) return {};
  if (seals != 0 && fcntl(file.get(), F_ADD_SEALS, seals) != 0) return {};
  return file;
}

// The trainer's own view of it; unmapped with the object.
class Mapping {
 public:
  Mapping(int fd, int64_t size) : size_(static_cast<size_t>(size)) {
    bytes_ = static_cast<uint8_t*>(mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  }
  ~Mapping() { munmap(bytes_, size_); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  uint8_t* data() const { return bytes_; }

 private:
  const size_t size_;
  uint8_t* bytes_;
};

}  // namespace nni_compression::testing

#endif  // NNI_COMPRESSION_TESTS_TESTING_SEALED_FILE_H_
