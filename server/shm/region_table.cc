#include "server/shm/region_table.h"

#include <sys/random.h>

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/wire/frames.h"

namespace nni_compression::server {

RegionTable::RegionTable(int64_t max_bytes)
    : mapped_(MemoryBudget::Create(max_bytes, [](const auto&) {})) {}

absl::StatusOr<std::string> RegionTable::Add(absl::string_view tenant, int fd, uint64_t byte_length,
                                             bool writable) {
  std::optional<Reservation> memory;
  if (byte_length <= static_cast<uint64_t>(max_bytes())) {
    memory = mapped_->TryReserve(static_cast<int64_t>(byte_length));
  }
  if (!memory) {
    return absl::ResourceExhaustedError(
        absl::StrCat("byte_length is ", byte_length, "; all regions together may have ",
                     max_bytes(), " bytes, of which less is free now"));
  }
  auto region = Region::Map(fd, byte_length, writable, *std::move(memory));
  if (!region.ok()) return region.status();
  std::string id(wire::kRegionIdBytes, '\0');
  if (getrandom(id.data(), id.size(), 0) != static_cast<ssize_t>(id.size())) {
    return absl::InternalError("the system's random number generator failed");
  }
  MutexLock lock(&mutex_);
  regions_[id] = Entry{std::string(tenant), *std::move(region)};
  return id;
}

void RegionTable::Remove(absl::string_view id) {
  Entry removed;  // unmapped after the lock is free
  MutexLock lock(&mutex_);
  const auto it = regions_.find(id);
  if (it == regions_.end()) return;
  removed = std::move(it->second);
  regions_.erase(it);
}

absl::StatusOr<compression::Buffer> RegionTable::Find(
    absl::string_view tenant, const nni::compression::v1::SharedPlace& place, uint64_t length,
    bool writable) const {
  std::shared_ptr<const Region> region;
  {
    MutexLock lock(&mutex_);
    const auto it = regions_.find(place.region());
    // Other tenants do not learn whose it is or whether it ever existed.
    if (it != regions_.end() && it->second.tenant == tenant) region = it->second.region;
  }
  if (region == nullptr) return absl::NotFoundError("no such region of shared memory");
  if (writable && !region->writable()) {
    return absl::InvalidArgumentError("the region was not added as writable");
  }
  return region->Part(place.offset(), length);
}

}  // namespace nni_compression::server
