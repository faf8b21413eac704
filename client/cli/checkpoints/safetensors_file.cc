#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "client/cli/checkpoints/file_error.h"
#include "client/cli/checkpoints/safetensors.h"

namespace nni_compression::cli {
namespace {

// For the handler of SIGBUS, which must not allocate.
std::string* truncated_message = nullptr;
int truncated_exit_status = 1;

void OnTruncated(int) {
  if (write(STDERR_FILENO, truncated_message->data(), truncated_message->size()) < 0) {
    // The exit status still tells.
  }
  _exit(truncated_exit_status);
}

// A zip archive, or the pickle of PyTorch before 1.6.
bool IsOfTorch(absl::string_view bytes) {
  return absl::StartsWith(bytes, "PK\3\4") || absl::StartsWith(bytes, "\x80\2\x8a\n");
}

}  // namespace

void ExitOnTruncatedInput(const std::string& message, int exit_status) {
  truncated_message = new std::string(absl::StrCat(message, "\n"));
  truncated_exit_status = exit_status;
  struct sigaction action = {};
  action.sa_handler = OnTruncated;
  sigaction(SIGBUS, &action, nullptr);
}

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return FileError("open", path);
  const auto closer = absl::MakeCleanup([descriptor] { close(descriptor); });
  struct stat status;
  if (fstat(descriptor, &status) != 0) return FileError("stat", path);
  if (!S_ISREG(status.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a file"));
  }
  SafetensorsFile file;
  file.size_ = static_cast<size_t>(status.st_size);
  if (file.size_ > 0) {
    void* mapped = mmap(nullptr, file.size_, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (mapped == MAP_FAILED) return FileError("map", path);
    file.data_ = static_cast<const uint8_t*>(mapped);
  }
  if (IsOfTorch({reinterpret_cast<const char*>(file.data_), file.size_})) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is a file of torch.save; write one of safetensors: ",
                     "safetensors.torch.save_file(model.state_dict(), \"model.safetensors\")"));
  }
  auto header = ParseHeader({file.data_, file.size_}, static_cast<int64_t>(file.size_));
  if (!header.ok()) {
    return absl::Status(header.status().code(),
                        absl::StrCat(path, ": ", header.status().message()));
  }
  file.header_ = *std::move(header);
  file.Release();
  return file;
}

SafetensorsFile::~SafetensorsFile() {
  if (data_ != nullptr) munmap(const_cast<uint8_t*>(data_), size_);
}

SafetensorsFile::SafetensorsFile(SafetensorsFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      header_(std::move(other.header_)) {}

void SafetensorsFile::Release() const {
  // The mapping has no changes of its own that could be lost.
  if (data_ != nullptr) madvise(const_cast<uint8_t*>(data_), size_, MADV_DONTNEED);
}

absl::Span<const uint8_t> SafetensorsFile::bytes(const FileTensor& tensor) const {
  return {data_ + header_.data_begin + tensor.begin,
          static_cast<size_t>(tensor.end - tensor.begin)};
}

}  // namespace nni_compression::cli
