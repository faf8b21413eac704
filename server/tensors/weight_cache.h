// A cache of received weights, so that they need not be sent again.
#ifndef NNI_COMPRESSION_SERVER_TENSORS_WEIGHT_CACHE_H_
#define NNI_COMPRESSION_SERVER_TENSORS_WEIGHT_CACHE_H_

#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "compression/tensors/weight.h"
#include "compression/types/buffer.h"
#include "nni/compression/v1/compression.pb.h"
#include "server/base/executor.h"
#include "server/base/mutex.h"
#include "server/limits/memory_budget.h"
#include "server/platform/sha256.h"

namespace nni_compression::server {

// Computes the digest of a tensor, as defined in compression.proto, incrementally.
// Thread-compatible.
class TensorDigest {
 public:
  explicit TensorDigest(const nni::compression::v1::TensorHeader& header);

  void Add(const uint8_t* bytes, int64_t size);
  std::string Finish();  // 32 bytes; called once

  static std::string Of(const nni::compression::v1::TensorHeader& header,
                        const compression::Buffer& bytes);

 private:
  Sha256Hasher hasher_;
};

class WeightCache;

// A cached weight and its statistics. The bytes do not change.
class CachedWeight {
 public:
  CachedWeight(WeightCache* cache, const nni::compression::v1::TensorHeader& header,
               compression::Buffer bytes);

  const compression::Buffer& bytes() const { return bytes_; }
  compression::WeightStatistics& statistics() { return statistics_; }

 private:
  friend class WeightCache;

  // Whether the header announces a tensor of this dtype, shape and length.
  bool Is(const nni::compression::v1::TensorHeader& header) const;

  const nni::compression::v1::TensorHeader kind_;  // dtype and shape
  const compression::Buffer bytes_;
  compression::WeightStatistics statistics_;
  // Guarded by the cache's mutex.
  std::vector<Reservation> memory_;
  std::string tenant_;   // while it is cached
  int64_t counted_ = 0;  // its part of the cache's bytes
  bool kept_ = false;
};

// Finds weights by their digests, which the cache always computes itself from the bytes, so that no
// client can store bytes under a false digest. Hashing is slower than receiving, so it is deferred
// until a client asks for the weight's fingerprint. Tenants do not share weights. Evicts the least
// recently used weights of the tenant with the most bytes, when over the limit or when the memory
// budget needs the space; a caller that holds an evicted weight keeps it. The bytes of a weight
// include its index entries and statistics. Thread-safe.
class WeightCache {
 public:
  // Caches at most `limit` bytes; 0 disables the cache. `executor` and `budget` outlive the cache,
  // but the executor's work must be done, and no weight be held, before the cache is destroyed.
  WeightCache(int64_t limit, Executor* executor, MemoryBudget* budget);
  ~WeightCache();

  // Caches a weight; it replaces the one with the same fingerprint. Does nothing when it does not
  // fit. `header` has a fingerprint, or a verified digest. `memory` is the reservation of the
  // weight's bytes.
  void Keep(const std::string& tenant, const nni::compression::v1::TensorHeader& header,
            compression::Buffer bytes, Reservation memory);

  // Calls `done` with whether there is a cached weight for each fingerprint, once all of these have
  // their digests: on a thread of the executor, which does all of the work, or at once if there are
  // few names and nothing to hash.
  void Ask(const std::string& tenant, std::vector<std::string> fingerprints,
           std::function<void(const std::vector<bool>& kept)> done);

  // The weight with the header's digest. Null when no cached weight has that digest computed, or
  // when its dtype, shape or length differs from the header's, since the sender's digest proves
  // nothing about these.
  std::shared_ptr<CachedWeight> Find(absl::string_view tenant,
                                     const nni::compression::v1::TensorHeader& header);

  // Evicts weights of at least `bytes` bytes, or all.
  void Reclaim(int64_t bytes);

  int64_t limit() const { return limit_; }
  int64_t bytes() const;  // kept
  int64_t weights() const;
  int64_t hits() const;  // successful calls of Find
  int64_t misses() const;

 private:
  friend class CachedWeight;
  struct Query;
  struct HashJob;

  struct Entry {
    std::string name;    // the fingerprint; the digest where there is none
    std::string digest;  // empty: not computed yet
    std::shared_ptr<CachedWeight> weight;
    std::shared_ptr<HashJob> job;  // while its digest is being computed
  };
  using Entries = std::list<Entry>;

  // The cached weights of a tenant.
  struct TenantWeights {
    Entries entries;  // the most recently used first
    absl::flat_hash_map<std::string, Entries::iterator> by_name;
    absl::flat_hash_map<std::string, Entries::iterator> by_digest;
    int64_t bytes = 0;
  };
  using Tenants = std::map<std::string, TenantWeights, std::less<>>;

  // Does a few milliseconds of a query's work and schedules the rest: hashes `job`, then the next
  // queried weights without a digest. `work` is the class that it was scheduled with.
  void Process(const std::shared_ptr<Query>& query, std::shared_ptr<HashJob> job, Work work);
  // The next weight to hash; null when there is none among the next names.
  std::shared_ptr<HashJob> NextJob(const std::shared_ptr<Query>& query);
  bool IsComplete(const Query& query) const;  // whether all names were looked up
  void SetDigest(const HashJob& job, const std::string& digest);
  void Answer(const Query& query);

  // Reserves memory for statistics of a weight; returns whether there was enough.
  bool Admit(CachedWeight* weight, int64_t bytes);

  Entry* FindName(absl::string_view tenant, const std::string& name)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Remove(Tenants::iterator kept, Entries::iterator entry, Entries* out)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Moves the least recently used entries to `out` until at most `limit` bytes are left.
  void Shrink(int64_t limit, Entries* out) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int64_t limit_;
  Executor* const executor_;
  MemoryBudget* const budget_;
  mutable Mutex mutex_;
  Tenants tenants_ ABSL_GUARDED_BY(mutex_);  // only tenants with cached weights
  int64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t weights_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t hits_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t misses_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_TENSORS_WEIGHT_CACHE_H_
