// Memory that a trainer on this host shares with the server.
#ifndef NNI_COMPRESSION_SERVER_SHM_REGION_H_
#define NNI_COMPRESSION_SERVER_SHM_REGION_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compression/types/buffer.h"
#include "server/limits/memory_budget.h"

namespace nni_compression::server {

// Offsets in a region must be multiples of this, which the kernels require.
constexpr uint64_t kRegionAlignment = 64;

// A mapping of a trainer's memfd, unmapped with its last handle or Buffer. The trainer may write to
// it at any time. Thread-safe, as far as such bytes can be.
class Region : public std::enable_shared_from_this<Region> {
 public:
  // Maps the whole file of `fd`, which the caller still owns and may close. INVALID_ARGUMENT,
  // saying what is wrong, unless it is a memfd of exactly `byte_length` bytes, sealed against
  // shrinking and growing (reading beyond a shorter file is a SIGBUS), and without holes (filling
  // them would use the server's memory). RESOURCE_EXHAUSTED when it cannot be mapped. `memory` is
  // the reservation of the mapping.
  static absl::StatusOr<std::shared_ptr<const Region>> Map(int fd, uint64_t byte_length,
                                                           bool writable, Reservation memory);
  ~Region();
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  int64_t size() const { return size_; }
  bool writable() const { return writable_; }

  // The `length` bytes at `offset`; they keep the mapping alive, and may be written to only if the
  // region is writable. INVALID_ARGUMENT for bytes outside of the region or an unaligned offset.
  absl::StatusOr<compression::Buffer> Part(uint64_t offset, uint64_t length) const;

 private:
  Region(uint8_t* data, int64_t size, bool writable, Reservation memory)
      : data_(data), size_(size), writable_(writable), memory_(std::move(memory)) {}

  uint8_t* const data_;
  const int64_t size_;
  const bool writable_;
  const Reservation memory_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_SHM_REGION_H_
