// Weights that came before, kept for whoever sends them next.
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

// The digest of a tensor, as compression.proto has it, piece by piece. Thread-compatible.
class TensorDigest {
 public:
  explicit TensorDigest(const nni::compression::v1::TensorHeader& header);

  void Add(const uint8_t* bytes, int64_t size);
  std::string Finish();  // 32 bytes; once

  static std::string Of(const nni::compression::v1::TensorHeader& header,
                        const compression::Buffer& bytes);

 private:
  Sha256Hasher hasher_;
};

class WeightCache;

// A weight that is kept, and what is known of it. The bytes are not written to any more.
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
  // Under the cache's mutex.
  std::vector<Reservation> memory_;
  std::string tenant_;   // while it is kept
  int64_t counted_ = 0;  // of the cache's bytes
  bool kept_ = false;
};

// Finds weights by their digests, which are always computed here, from the bytes: nobody can put
// bytes under the name of others. Hashing takes longer than receiving, so it waits until somebody
// asks for the fingerprint that a weight came with. Tenants know nothing of each other's weights.
// The least recently used weights are evicted when there are too many, or when the memory budget
// needs their place: those of the tenant that has most, so that others keep theirs. A caller that
// holds one keeps it until then. Counts with each weight what finding it takes, and what is known
// of it. Thread-safe.
class WeightCache {
 public:
  // Keeps at most `limit` bytes; 0 keeps nothing. `executor` and `budget` outlive the cache, but
  // the executor's work must be done, and no weight be held, before the cache is destroyed.
  WeightCache(int64_t limit, Executor* executor, MemoryBudget* budget);
  ~WeightCache();

  // Keeps a weight, in place of the one that came with the same fingerprint. Nothing happens when
  // it does not fit. `header` has a fingerprint, or a digest that is known to be that of the bytes.
  // `memory` has the bytes of the weight.
  void Keep(const std::string& tenant, const nni::compression::v1::TensorHeader& header,
            compression::Buffer bytes, Reservation memory);

  // Tells `done` which of the fingerprints came with a weight that is kept, once all of these have
  // their digests; on a thread of the executor, where all of it is done, or at once where the names
  // are few and there is nothing to hash. After that, what is worth knowing of them for pruners is
  // computed too, if `for_pruner`.
  void Ask(const std::string& tenant, std::vector<std::string> fingerprints, bool for_pruner,
           std::function<void(const std::vector<bool>& kept)> done);

  // The weight that has the header's digest. Null when none is kept, as far as digests are
  // computed, or when its dtype, shape or length is not the header's: what the digest says of them
  // is the sender's claim.
  std::shared_ptr<CachedWeight> Find(absl::string_view tenant,
                                     const nni::compression::v1::TensorHeader& header);

  // Lets go of at least so many bytes, or of all there are.
  void Reclaim(int64_t bytes);

  int64_t limit() const { return limit_; }
  int64_t bytes() const;  // kept
  int64_t weights() const;
  int64_t hits() const;  // how often Find found one
  int64_t misses() const;

 private:
  friend class CachedWeight;
  struct Question;
  struct Hashing;

  struct Entry {
    std::string name;    // the fingerprint; the digest where there is none
    std::string digest;  // empty: not computed yet
    std::shared_ptr<CachedWeight> weight;
    std::shared_ptr<Hashing> hashing;  // while it runs
  };
  using Entries = std::list<Entry>;

  // What is kept of a tenant.
  struct Shelf {
    Entries entries;  // the most recently used first
    absl::flat_hash_map<std::string, Entries::iterator> by_name;
    absl::flat_hash_map<std::string, Entries::iterator> by_digest;
    int64_t bytes = 0;
  };
  using Shelves = std::map<std::string, Shelf, std::less<>>;

  // A few milliseconds of a question's work, after which it schedules the rest: hashes `job`, then
  // the next weights that are asked for and have no digest. `work` is what it was scheduled as.
  void Walk(const std::shared_ptr<Question>& question, std::shared_ptr<Hashing> job, Work work);
  // The next weight to hash; null when there is none among the next names.
  std::shared_ptr<Hashing> NextJob(const std::shared_ptr<Question>& question);
  bool IsThrough(const Question& question) const;  // all names
  void HasDigest(const Hashing& job, const std::string& digest);
  void Prepare(CachedWeight& weight);
  void Answer(const Question& question);

  // Whether there is memory for so much more of what is known of a weight.
  bool Admit(CachedWeight* weight, int64_t bytes);

  Entry* FindName(absl::string_view tenant, const std::string& name)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Remove(Shelves::iterator shelf, Entries::iterator entry, Entries* out)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Moves the oldest entries out until no more than `limit` bytes are left.
  void Shrink(int64_t limit, Entries* out) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int64_t limit_;
  Executor* const executor_;
  MemoryBudget* const budget_;
  mutable Mutex mutex_;
  Shelves shelves_ ABSL_GUARDED_BY(mutex_);  // that have any
  int64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t weights_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t hits_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t misses_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_TENSORS_WEIGHT_CACHE_H_
