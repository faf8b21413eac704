// Weights that came before, kept for whoever sends them next.
#ifndef NNI_COMPRESSION_SERVER_WEIGHT_CACHE_H_
#define NNI_COMPRESSION_SERVER_WEIGHT_CACHE_H_

#include <array>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "compression/buffer.h"
#include "compression/weight.h"
#include "nni/compression/v1/compression.pb.h"
#include "server/executor.h"
#include "server/memory_budget.h"
#include "server/mutex.h"

namespace nni_compression::server {

// The digest of a tensor, as compression.proto has it, piece by piece. Thread-compatible.
class TensorDigest {
 public:
  explicit TensorDigest(const nni::compression::v1::TensorHeader& header);
  ~TensorDigest();
  TensorDigest(const TensorDigest&) = delete;
  TensorDigest& operator=(const TensorDigest&) = delete;

  void Add(const uint8_t* bytes, int64_t size);
  std::string Finish();  // 32 bytes; once

  static std::string Of(const nni::compression::v1::TensorHeader& header,
                        const compression::Buffer& bytes);

 private:
  void* const context_;
};

// A weight that is kept, and its share of the memory budget.
struct CachedWeight {
  compression::Buffer bytes;
  Reservation memory;
  compression::WeightStatistics statistics;
};

// Finds weights by their digests, which are always computed here, from the bytes: nobody can put
// bytes under the name of others. Tenants know nothing of each other's weights. The weights that
// were not used for the longest time go when there are too many, or when the memory budget needs
// their place; who holds one keeps it until then. Thread-safe.
class WeightCache {
 public:
  // Keeps at most `limit` bytes; 0 keeps nothing. `executor` and `budget` outlive the cache, but
  // the executor's work must be done before the cache is destroyed.
  WeightCache(int64_t limit, Executor* executor, MemoryBudget* budget);
  ~WeightCache();

  // Whether a weight of the tenant is kept that came with the fingerprint.
  bool MayHave(absl::string_view tenant, absl::string_view fingerprint) const;

  // Null when the weight is not kept.
  std::shared_ptr<CachedWeight> Find(absl::string_view tenant, absl::string_view digest);

  // Keeps a weight once its digest is computed, which is done when the executor has nothing better
  // to do, and then what is worth knowing of it for pruners, if `for_pruner`. Nothing happens when
  // it does not fit, or too many wait already. `memory` has the bytes of the weight.
  void Keep(const std::string& tenant, const nni::compression::v1::TensorHeader& header,
            compression::Buffer bytes, Reservation memory, bool for_pruner);

  // Lets go of at least so many bytes, or of all there are.
  void Reclaim(int64_t bytes);

  int64_t limit() const { return limit_; }
  int64_t bytes() const;  // kept
  int64_t weights() const;

 private:
  using Key = std::pair<std::string, std::string>;  // tenant, and digest or fingerprint

  struct Entry {
    Key key;
    std::string fingerprint;
    std::shared_ptr<CachedWeight> weight;
  };
  struct Hashing;

  // A slice of the work; schedules the next one.
  void Hash(const std::shared_ptr<Hashing>& job);
  void Insert(Key key, std::string fingerprint, std::shared_ptr<CachedWeight> weight);
  // Moves the oldest entries out until no more than `limit` bytes are left.
  void Shrink(int64_t limit, std::list<Entry>* out) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int64_t limit_;
  Executor* const executor_;
  MemoryBudget* const budget_;
  mutable Mutex mutex_;
  std::list<Entry> entries_ ABSL_GUARDED_BY(mutex_);  // the most recently used first
  std::map<Key, std::list<Entry>::iterator> by_digest_ ABSL_GUARDED_BY(mutex_);
  std::map<Key, int> fingerprints_ ABSL_GUARDED_BY(mutex_);  // and how many weights have them
  int64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t waiting_ ABSL_GUARDED_BY(mutex_) = 0;  // bytes that are being hashed
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_WEIGHT_CACHE_H_
