// The regions of all trainers, by id.
#ifndef NNI_COMPRESSION_SERVER_SHM_REGION_TABLE_H_
#define NNI_COMPRESSION_SERVER_SHM_REGION_TABLE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compression/types/buffer.h"
#include "nni/compression/v1/compression.pb.h"
#include "server/base/mutex.h"
#include "server/limits/memory_budget.h"
#include "server/shm/region.h"

namespace nni_compression::server {

// Calls look regions up in it. Thread-safe; regions may outlive it.
class RegionTable {
 public:
  // `max_bytes`: the limit of mapped bytes, over all trainers.
  explicit RegionTable(int64_t max_bytes);

  // Maps the file of `fd` for `tenant` and returns the region's id, 16 random bytes. Errors as
  // Region::Map, and RESOURCE_EXHAUSTED when too much is mapped.
  absl::StatusOr<std::string> Add(absl::string_view tenant, int fd, uint64_t byte_length,
                                  bool writable);

  // The region is not found any more; calls that use it continue.
  void Remove(absl::string_view id);

  // The `length` bytes at `place`, in a writable region if `writable`. NOT_FOUND for an id that
  // does not exist or is another tenant's; INVALID_ARGUMENT as Region::Part.
  absl::StatusOr<compression::Buffer> Find(absl::string_view tenant,
                                           const nni::compression::v1::SharedPlace& place,
                                           uint64_t length, bool writable) const;

  int64_t mapped_bytes() const { return mapped_->reserved(); }
  int64_t max_bytes() const { return mapped_->limit(); }

 private:
  struct Entry {
    std::string tenant;
    std::shared_ptr<const Region> region;
  };

  const std::shared_ptr<MemoryBudget> mapped_;  // counts address space; requests never wait
  mutable Mutex mutex_;
  absl::flat_hash_map<std::string, Entry> regions_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_SHM_REGION_TABLE_H_
