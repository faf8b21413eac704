#include "server/weight_cache.h"

#include <openssl/evp.h>

#include <algorithm>

#include "server/convert.h"

namespace nni_compression::server {
namespace {

// Hashed without a pause: a few milliseconds.
constexpr int64_t kSliceBytes = 8 << 20;

// Smaller weights are searched sooner than their statistics are worth the place.
constexpr int64_t kStatisticsBytes = 8 << 20;

template <typename T>
void AddNumber(TensorDigest& digest, T value) {
  uint8_t bytes[sizeof(T)];
  for (size_t i = 0; i < sizeof(T); ++i) {
    bytes[i] = static_cast<uint8_t>(static_cast<uint64_t>(value) >> (8 * i));
  }
  digest.Add(bytes, sizeof bytes);
}

EVP_MD_CTX* Context(void* context) { return static_cast<EVP_MD_CTX*>(context); }

}  // namespace

TensorDigest::TensorDigest(const nni::compression::v1::TensorHeader& header)
    : context_(EVP_MD_CTX_new()) {
  EVP_DigestInit_ex(Context(context_), EVP_sha256(), nullptr);
  AddNumber(*this, static_cast<uint8_t>(header.dtype()));
  AddNumber(*this, static_cast<uint32_t>(header.shape_size()));
  for (const int64_t dimension : header.shape()) AddNumber(*this, dimension);
}

TensorDigest::~TensorDigest() { EVP_MD_CTX_free(Context(context_)); }

void TensorDigest::Add(const uint8_t* bytes, int64_t size) {
  EVP_DigestUpdate(Context(context_), bytes, static_cast<size_t>(size));
}

std::string TensorDigest::Finish() {
  std::string digest(32, '\0');
  EVP_DigestFinal_ex(Context(context_), reinterpret_cast<unsigned char*>(digest.data()), nullptr);
  return digest;
}

std::string TensorDigest::Of(const nni::compression::v1::TensorHeader& header,
                             const compression::Buffer& bytes) {
  TensorDigest digest(header);
  digest.Add(bytes.data(), bytes.size());
  return digest.Finish();
}

// A weight on its way into the cache.
struct WeightCache::Hashing {
  Hashing(std::string tenant, const nni::compression::v1::TensorHeader& header)
      : tenant(std::move(tenant)), header(header), digest(header) {}

  const std::string tenant;
  const nni::compression::v1::TensorHeader header;
  TensorDigest digest;
  int64_t done = 0;
  bool for_pruner = false;
  std::shared_ptr<CachedWeight> weight;
};

WeightCache::WeightCache(int64_t limit, Executor* executor, MemoryBudget* budget)
    : limit_(limit), executor_(executor), budget_(budget) {
  budget_->SetReclaimer([this](int64_t bytes) { Reclaim(bytes); });
}

WeightCache::~WeightCache() { budget_->SetReclaimer(nullptr); }

bool WeightCache::MayHave(absl::string_view tenant, absl::string_view fingerprint) const {
  MutexLock lock(&mutex_);
  return fingerprints_.count(Key(tenant, fingerprint)) > 0;
}

std::shared_ptr<CachedWeight> WeightCache::Find(absl::string_view tenant,
                                                absl::string_view digest) {
  MutexLock lock(&mutex_);
  const auto found = by_digest_.find(Key(tenant, digest));
  if (found == by_digest_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, found->second);
  return found->second->weight;
}

void WeightCache::Keep(const std::string& tenant, const nni::compression::v1::TensorHeader& header,
                       compression::Buffer bytes, Reservation memory, bool for_pruner) {
  const int64_t size = bytes.size();
  {
    MutexLock lock(&mutex_);
    if (size > limit_ - waiting_) return;
    waiting_ += size;
  }
  auto job = std::make_shared<Hashing>(tenant, header);
  job->for_pruner = for_pruner;
  job->weight = std::make_shared<CachedWeight>();
  job->weight->bytes = std::move(bytes);
  job->weight->memory = std::move(memory);
  executor_->Schedule([this, job] { Hash(job); }, Work::kIdle);
}

void WeightCache::Hash(const std::shared_ptr<Hashing>& job) {
  const compression::Buffer& bytes = job->weight->bytes;
  const int64_t size = std::min(kSliceBytes, bytes.size() - job->done);
  job->digest.Add(bytes.data() + job->done, size);
  job->done += size;
  if (job->done < bytes.size()) {
    executor_->Schedule([this, job] { Hash(job); }, Work::kIdle);
    return;
  }
  std::string fingerprint = job->header.fingerprint();
  const auto weight = job->weight;
  Insert({job->tenant, job->digest.Finish()}, std::move(fingerprint), weight);
  if (job->for_pruner && bytes.size() >= kStatisticsBytes) {
    const auto dtype = ToDataType(job->header.dtype(), "dtype");
    if (!dtype.ok()) return;
    const int64_t elements = bytes.size() / compression::ByteLength(*dtype, 1);
    executor_->Schedule(
        [weight, dtype = *dtype, elements] {
          weight->statistics.Prepare(dtype, weight->bytes.data(), elements);
        },
        Work::kIdle);
  }
}

void WeightCache::Insert(Key key, std::string fingerprint, std::shared_ptr<CachedWeight> weight) {
  std::list<Entry> out;  // destroyed without the lock
  MutexLock lock(&mutex_);
  const int64_t size = weight->bytes.size();
  waiting_ -= size;
  const auto found = by_digest_.find(key);
  if (found != by_digest_.end()) {
    entries_.splice(entries_.begin(), entries_, found->second);
    return;
  }
  Shrink(limit_ - size, &out);
  ++fingerprints_[Key(key.first, fingerprint)];
  entries_.push_front({key, std::move(fingerprint), std::move(weight)});
  by_digest_[std::move(key)] = entries_.begin();
  bytes_ += size;
}

void WeightCache::Reclaim(int64_t bytes) {
  std::list<Entry> out;  // gives its memory back without the lock
  {
    MutexLock lock(&mutex_);
    Shrink(std::max<int64_t>(0, bytes_ - bytes), &out);
  }
}

void WeightCache::Shrink(int64_t limit, std::list<Entry>* out) {
  while (bytes_ > limit && !entries_.empty()) {
    const auto last = std::prev(entries_.end());
    bytes_ -= last->weight->bytes.size();
    by_digest_.erase(last->key);
    const auto fingerprint = fingerprints_.find(Key(last->key.first, last->fingerprint));
    if (--fingerprint->second == 0) fingerprints_.erase(fingerprint);
    out->splice(out->end(), entries_, last);
  }
}

int64_t WeightCache::bytes() const {
  MutexLock lock(&mutex_);
  return bytes_;
}

int64_t WeightCache::weights() const {
  MutexLock lock(&mutex_);
  return static_cast<int64_t>(entries_.size());
}

}  // namespace nni_compression::server
