// A tenant's part of the memory budget.
#ifndef NNI_COMPRESSION_SERVER_LIMITS_MEMORY_ACCOUNT_H_
#define NNI_COMPRESSION_SERVER_LIMITS_MEMORY_ACCOUNT_H_

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "server/base/mutex.h"

namespace nni_compression::server {

// Counts the bytes of one tenant's reservations. Thread-safe.
class MemoryAccount {
 public:
  // RESOURCE_EXHAUSTED, with nothing added, when the sum would exceed `limit`; retryable if `bytes`
  // alone would not.
  absl::Status Add(int64_t bytes, std::optional<int64_t> limit);
  void Subtract(int64_t bytes);
  int64_t bytes() const;

 private:
  mutable Mutex mutex_;
  int64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

// An account and its limit. Without an account nothing is counted.
struct MemoryQuota {
  std::shared_ptr<MemoryAccount> account;
  std::optional<int64_t> limit;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_LIMITS_MEMORY_ACCOUNT_H_
