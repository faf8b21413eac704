#include "server/shm/region.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

namespace nni_compression::server {
namespace {

constexpr uint64_t kBlockBytes = 512;  // the unit of st_blocks

// The seals are checked first: only the kernel answers that. fstat could block on a file system
// that the peer runs itself.
absl::Status CheckFile(int fd, uint64_t byte_length) {
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0) {
    return absl::InvalidArgumentError("the file cannot be sealed; it must be made by memfd_create");
  }
  if ((seals & F_SEAL_SHRINK) == 0 || (seals & F_SEAL_GROW) == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the file is not sealed against ",
        (seals & F_SEAL_SHRINK) != 0 ? "growing (F_SEAL_GROW)"
        : (seals & F_SEAL_GROW) != 0 ? "shrinking (F_SEAL_SHRINK)"
                                     : "shrinking and growing (F_SEAL_SHRINK, F_SEAL_GROW)"));
  }
  struct statfs system;
  struct stat file;
  if (fstatfs(fd, &system) != 0 || fstat(fd, &file) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("the file: ", std::strerror(errno)));
  }
  // The pool of huge pages may be empty when a page is read, which is a SIGBUS, too.
  if (system.f_type != TMPFS_MAGIC || !S_ISREG(file.st_mode)) {
    return absl::InvalidArgumentError(
        "the file does not have ordinary pages; it must be made without MFD_HUGETLB");
  }
  if (byte_length == 0 || byte_length > std::numeric_limits<int64_t>::max() ||
      static_cast<uint64_t>(file.st_size) != byte_length) {
    return absl::InvalidArgumentError(absl::StrCat("byte_length is ", byte_length,
                                                   "; it must be the size of the file, ",
                                                   file.st_size, ", and at least 1"));
  }
  if (static_cast<uint64_t>(file.st_blocks) < (byte_length + kBlockBytes - 1) / kBlockBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the file has holes: ", static_cast<uint64_t>(file.st_blocks) * kBlockBytes,
                     " of ", byte_length, " bytes are allocated; call fallocate on it first"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Region>> Region::Map(int fd, uint64_t byte_length,
                                                          bool writable, Reservation memory) {
  if (absl::Status status = CheckFile(fd, byte_length); !status.ok()) return status;
  const int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
  void* const data = mmap(nullptr, byte_length, protection, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) {
    const int error = errno;
    const std::string text = absl::StrCat("the file cannot be mapped: ", std::strerror(error));
    // A memfd may be sealed against writing, or its descriptor read-only.
    if (error == EPERM || error == EACCES) return absl::InvalidArgumentError(text);
    return absl::ResourceExhaustedError(text);
  }
  return std::shared_ptr<const Region>(new Region(
      static_cast<uint8_t*>(data), static_cast<int64_t>(byte_length), writable, std::move(memory)));
}

Region::~Region() { munmap(data_, static_cast<size_t>(size_)); }

absl::StatusOr<compression::Buffer> Region::Part(uint64_t offset, uint64_t length) const {
  const auto size = static_cast<uint64_t>(size_);
  // Not offset + length, which can wrap.
  if (offset > size || length > size - offset) {
    return absl::InvalidArgumentError(absl::StrCat("offset is ", offset, ", and ", length,
                                                   " bytes follow; the region has ", size));
  }
  if (offset % kRegionAlignment != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("offset is ", offset, "; it must be a multiple of ", kRegionAlignment));
  }
  return compression::Buffer::Alias(data_ + offset, static_cast<int64_t>(length),
                                    shared_from_this());
}

}  // namespace nni_compression::server
