#include "server/storage/reserve.h"

#include <fcntl.h>
#include <unistd.h>

#include "server/platform/file_descriptor.h"

namespace nni_compression::server {
namespace {

constexpr off_t kLeastBytes = 64 << 10;

}  // namespace

void Reserve::Fill() {
  if (bytes_ == kBytes) return;
  const FileDescriptor file(open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!file.valid()) return;
  // Space that is held already stays held, whatever fails.
  for (off_t bytes = kBytes; bytes > bytes_ && bytes >= kLeastBytes; bytes /= 2) {
    if (posix_fallocate(file.get(), 0, bytes) == 0) {
      bytes_ = bytes;
      return;
    }
  }
  if (bytes_ == 0) unlink(path_.c_str());
}

bool Reserve::Release() {
  if (bytes_ == 0 || unlink(path_.c_str()) != 0) return false;
  bytes_ = 0;
  return true;
}

}  // namespace nni_compression::server
