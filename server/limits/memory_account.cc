#include "server/limits/memory_account.h"

#include "server/base/errors.h"

namespace nni_compression::server {

absl::Status MemoryAccount::Add(int64_t bytes, std::optional<int64_t> limit) {
  MutexLock lock(&mutex_);
  if (!limit || bytes <= *limit - bytes_) {
    bytes_ += bytes;
    return absl::OkStatus();
  }
  return QuotaExhausted("memory", bytes_, bytes, *limit,
                        bytes <= *limit ? std::optional(kRetryWait) : std::nullopt);
}

void MemoryAccount::Subtract(int64_t bytes) {
  MutexLock lock(&mutex_);
  bytes_ -= bytes;
}

int64_t MemoryAccount::bytes() const {
  MutexLock lock(&mutex_);
  return bytes_;
}

}  // namespace nni_compression::server
