#include "server/tensors/weight_cache.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

#include "server/limits/memory_costs.h"

namespace nni_compression::server {

using nni::compression::v1::TensorHeader;

namespace {

// Bytes hashed without a pause: a few milliseconds; and within short work.
constexpr int64_t kSliceBytes = 8 << 20;
constexpr int64_t kShortBytes = 64 << 10;

// Names looked up with the lock held, and bytes that could be hashed in the same time.
constexpr size_t kNamesAtATime = 1024;
constexpr size_t kFewNames = 64;  // not worth another thread
constexpr int64_t kNamesBytes = 128 << 10;

template <typename T>
void AddNumber(TensorDigest& digest, T value) {
  uint8_t bytes[sizeof(T)];
  for (size_t i = 0; i < sizeof(T); ++i) {
    bytes[i] = static_cast<uint8_t>(static_cast<uint64_t>(value) >> (8 * i));
  }
  digest.Add(bytes, sizeof bytes);
}

// What a digest covers in addition to the bytes.
TensorHeader KindOf(const TensorHeader& header) {
  TensorHeader kind;
  kind.set_dtype(header.dtype());
  *kind.mutable_shape() = header.shape();
  return kind;
}

}  // namespace

TensorDigest::TensorDigest(const TensorHeader& header) {
  AddNumber(*this, static_cast<uint8_t>(header.dtype()));
  AddNumber(*this, static_cast<uint32_t>(header.shape_size()));
  for (const int64_t dimension : header.shape()) AddNumber(*this, dimension);
}

void TensorDigest::Add(const uint8_t* bytes, int64_t size) {
  hasher_.Add(bytes, static_cast<size_t>(size));
}

std::string TensorDigest::Finish() { return hasher_.Finish(); }

std::string TensorDigest::Of(const TensorHeader& header, const compression::Buffer& bytes) {
  TensorDigest digest(header);
  digest.Add(bytes.data(), bytes.size());
  return digest.Finish();
}

CachedWeight::CachedWeight(WeightCache* cache, const TensorHeader& header,
                           compression::Buffer bytes)
    : kind_(KindOf(header)),
      bytes_(std::move(bytes)),
      statistics_([this, cache](int64_t more) { return cache->Admit(this, more); }) {}

bool CachedWeight::Is(const TensorHeader& header) const {
  return kind_.dtype() == header.dtype() &&
         std::equal(kind_.shape().begin(), kind_.shape().end(), header.shape().begin(),
                    header.shape().end()) &&
         bytes_.size() == static_cast<int64_t>(header.byte_length());
}

// A caller that waits for digests. Releasing the last reference answers it.
struct WeightCache::Query {
  Query(const std::string& tenant, std::vector<std::string> fingerprints,
        std::function<void(const std::vector<bool>&)> done)
      : tenant(tenant), fingerprints(std::move(fingerprints)), done(std::move(done)) {}

  const std::string tenant;
  const std::vector<std::string> fingerprints;
  const std::function<void(const std::vector<bool>&)> done;
  // Guarded by the cache's mutex.
  size_t next = 0;  // index of the next fingerprint to look up
  int workers = 1;
};

// A weight whose digest is being computed, and the queries that wait for it.
struct WeightCache::HashJob {
  HashJob(const std::string& tenant, const std::string& name, std::shared_ptr<CachedWeight> weight,
          const TensorHeader& kind)
      : tenant(tenant), name(name), weight(std::move(weight)), digest(kind) {}

  const std::string tenant;
  const std::string name;
  const std::shared_ptr<CachedWeight> weight;
  TensorDigest digest;
  int64_t done = 0;
  std::vector<std::shared_ptr<Query>> queries;  // guarded by the cache's mutex
};

WeightCache::WeightCache(int64_t limit, Executor* executor, MemoryBudget* budget)
    : limit_(limit), executor_(executor), budget_(budget) {
  budget_->SetReclaimer([this](int64_t bytes) { Reclaim(bytes); });
}

WeightCache::~WeightCache() { budget_->SetReclaimer(nullptr); }

void WeightCache::Keep(const std::string& tenant, const TensorHeader& header,
                       compression::Buffer bytes, Reservation memory) {
  const int64_t size = bytes.size() + kCachedWeightBytes;
  if (size > limit_) return;
  std::optional<Reservation> overhead = budget_->TryReserve(kCachedWeightBytes);
  if (!overhead) return;
  const std::string& name = header.fingerprint().empty() ? header.digest() : header.fingerprint();
  auto weight = std::make_shared<CachedWeight>(this, header, std::move(bytes));
  Entries out;  // destroyed without the lock
  MutexLock lock(&mutex_);
  if (const auto kept = tenants_.find(tenant); kept != tenants_.end()) {
    const auto same = kept->second.by_name.find(name);
    if (same != kept->second.by_name.end()) Remove(kept, same->second, &out);
  }
  Shrink(limit_ - size, &out);
  weight->memory_.push_back(std::move(memory));
  weight->memory_.push_back(*std::move(overhead));
  weight->tenant_ = tenant;
  weight->counted_ = size;
  weight->kept_ = true;
  TenantWeights& weights = tenants_[tenant];
  weights.entries.push_front({name, header.digest(), std::move(weight), nullptr});
  weights.by_name[name] = weights.entries.begin();
  if (!header.digest().empty()) weights.by_digest[header.digest()] = weights.entries.begin();
  weights.bytes += size;
  bytes_ += size;
  ++weights_;
}

void WeightCache::Ask(const std::string& tenant, std::vector<std::string> fingerprints,
                      std::function<void(const std::vector<bool>&)> done) {
  const size_t count = fingerprints.size();
  const std::shared_ptr<Query> query(new Query(tenant, std::move(fingerprints), std::move(done)),
                                     [this](const Query* asked) {
                                       Answer(*asked);
                                       delete asked;
                                     });
  std::shared_ptr<HashJob> job;
  if (count <= kFewNames) {
    job = NextJob(query);
    if (job == nullptr) return;  // all have their digests
  }
  const Work work = job == nullptr && count <= kNamesAtATime ? Work::kShort : Work::kLong;
  executor_->Schedule([this, query, job, work] { Process(query, job, work); }, work);
}

void WeightCache::Process(const std::shared_ptr<Query>& query, std::shared_ptr<HashJob> job,
                          Work work) {
  int64_t left = work == Work::kShort ? kShortBytes : kSliceBytes;
  while (left > 0) {
    if (job == nullptr) {
      job = NextJob(query);
      if (job == nullptr && IsComplete(*query)) return;
      left -= kNamesBytes;
      if (job == nullptr) continue;
    }
    const compression::Buffer& bytes = job->weight->bytes();
    const int64_t size = std::min(std::max(left, kShortBytes), bytes.size() - job->done);
    job->digest.Add(bytes.data() + job->done, size);
    job->done += size;
    left -= size;
    if (job->done < bytes.size()) continue;
    SetDigest(*job, job->digest.Finish());
    job = nullptr;
  }
  executor_->Schedule([this, query, job] { Process(query, job, Work::kLong); }, Work::kLong);
}

std::shared_ptr<WeightCache::HashJob> WeightCache::NextJob(const std::shared_ptr<Query>& query) {
  std::shared_ptr<HashJob> job;
  bool help = false;
  {
    MutexLock lock(&mutex_);
    const std::vector<std::string>& names = query->fingerprints;
    const size_t end = std::min(names.size(), query->next + kNamesAtATime);
    while (query->next < end && job == nullptr) {
      const std::string& name = names[query->next++];
      Entry* const entry = FindName(query->tenant, name);
      if (entry == nullptr || !entry->digest.empty()) continue;
      if (entry->job == nullptr) {
        job = std::make_shared<HashJob>(query->tenant, name, entry->weight, entry->weight->kind_);
        entry->job = job;
      }
      entry->job->queries.push_back(query);
    }
    // More than one job: another thread takes part of the names.
    help = job != nullptr && query->next < names.size() && query->workers < executor_->threads();
    if (help) ++query->workers;
  }
  if (help) {
    executor_->Schedule([this, query] { Process(query, nullptr, Work::kLong); }, Work::kLong);
  }
  return job;
}

bool WeightCache::IsComplete(const Query& query) const {
  MutexLock lock(&mutex_);
  return query.next == query.fingerprints.size();
}

void WeightCache::Answer(const Query& query) {
  std::vector<bool> kept;
  kept.reserve(query.fingerprints.size());
  while (kept.size() < query.fingerprints.size()) {
    MutexLock lock(&mutex_);  // released from time to time, since calls look up digests meanwhile
    const size_t end = std::min(query.fingerprints.size(), kept.size() + kNamesAtATime);
    while (kept.size() < end) {
      kept.push_back(FindName(query.tenant, query.fingerprints[kept.size()]) != nullptr);
    }
  }
  query.done(kept);
}

void WeightCache::SetDigest(const HashJob& job, const std::string& digest) {
  std::vector<std::shared_ptr<Query>> queries;  // answered without the lock
  {
    MutexLock lock(&mutex_);
    queries = job.queries;
    Entry* const entry = FindName(job.tenant, job.name);
    // The weight may have been evicted or replaced in the meantime.
    if (entry != nullptr && entry->job.get() == &job) {
      entry->job = nullptr;
      entry->digest = digest;
      TenantWeights& weights = tenants_.find(job.tenant)->second;
      weights.by_digest[digest] = weights.by_name.find(job.name)->second;
    }
  }
}

bool WeightCache::Admit(CachedWeight* weight, int64_t bytes) {
  std::optional<Reservation> memory = budget_->TryReserve(bytes);
  if (!memory) return false;
  Entries out;
  MutexLock lock(&mutex_);
  weight->memory_.push_back(*std::move(memory));
  if (!weight->kept_) return true;  // evicted, but still used by calls
  weight->counted_ += bytes;
  bytes_ += bytes;
  tenants_.find(weight->tenant_)->second.bytes += bytes;
  Shrink(limit_, &out);
  return true;
}

std::shared_ptr<CachedWeight> WeightCache::Find(absl::string_view tenant,
                                                const TensorHeader& header) {
  MutexLock lock(&mutex_);
  const auto kept = tenants_.find(tenant);
  if (kept != tenants_.end()) {
    const auto found = kept->second.by_digest.find(header.digest());
    if (found != kept->second.by_digest.end() && found->second->weight->Is(header)) {
      ++hits_;
      Entries& entries = kept->second.entries;
      entries.splice(entries.begin(), entries, found->second);
      return found->second->weight;
    }
  }
  ++misses_;
  return nullptr;
}

void WeightCache::Reclaim(int64_t bytes) {
  Entries out;  // destroyed without the lock
  {
    MutexLock lock(&mutex_);
    Shrink(std::max<int64_t>(0, bytes_ - bytes), &out);
  }
}

WeightCache::Entry* WeightCache::FindName(absl::string_view tenant, const std::string& name) {
  const auto kept = tenants_.find(tenant);
  if (kept == tenants_.end()) return nullptr;
  const auto found = kept->second.by_name.find(name);
  return found == kept->second.by_name.end() ? nullptr : &*found->second;
}

void WeightCache::Remove(Tenants::iterator kept, Entries::iterator entry, Entries* out) {
  CachedWeight& weight = *entry->weight;
  weight.kept_ = false;
  kept->second.bytes -= weight.counted_;
  bytes_ -= weight.counted_;
  --weights_;
  kept->second.by_name.erase(entry->name);
  const auto digest = kept->second.by_digest.find(entry->digest);
  if (digest != kept->second.by_digest.end() && digest->second == entry) {
    kept->second.by_digest.erase(digest);
  }
  out->splice(out->end(), kept->second.entries, entry);
  if (kept->second.entries.empty()) tenants_.erase(kept);
}

void WeightCache::Shrink(int64_t limit, Entries* out) {
  while (bytes_ > limit && !tenants_.empty()) {
    const auto largest = std::max_element(
        tenants_.begin(), tenants_.end(),
        [](const auto& a, const auto& b) { return a.second.bytes < b.second.bytes; });
    Remove(largest, std::prev(largest->second.entries.end()), out);
  }
}

int64_t WeightCache::bytes() const {
  MutexLock lock(&mutex_);
  return bytes_;
}

int64_t WeightCache::weights() const {
  MutexLock lock(&mutex_);
  return weights_;
}

int64_t WeightCache::hits() const {
  MutexLock lock(&mutex_);
  return hits_;
}

int64_t WeightCache::misses() const {
  MutexLock lock(&mutex_);
  return misses_;
}

}  // namespace nni_compression::server
