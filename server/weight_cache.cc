#include "server/weight_cache.h"

#include <openssl/evp.h>

#include <algorithm>

#include "server/convert.h"

namespace nni_compression::server {

using nni::compression::v1::TensorHeader;

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

TensorDigest::TensorDigest(const TensorHeader& header) : context_(EVP_MD_CTX_new()) {
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

std::string TensorDigest::Of(const TensorHeader& header, const compression::Buffer& bytes) {
  TensorDigest digest(header);
  digest.Add(bytes.data(), bytes.size());
  return digest.Finish();
}

// Who asked, and waits for digests.
struct WeightCache::Question {
  const std::string tenant;
  const std::vector<std::string> fingerprints;
  const std::function<void(const std::vector<bool>&)> done;
};

// A weight that is asked for. Those who ask for it hold the question; the last one to drop it
// answers it.
struct WeightCache::Hashing {
  Hashing(Key name, const TensorHeader& header, std::shared_ptr<CachedWeight> weight,
          bool for_pruner)
      : name(std::move(name)),
        header(header),
        weight(std::move(weight)),
        for_pruner(for_pruner),
        digest(header) {}

  const Key name;
  const TensorHeader header;
  const std::shared_ptr<CachedWeight> weight;
  const bool for_pruner;
  TensorDigest digest;
  int64_t done = 0;
  std::vector<std::shared_ptr<const Question>> questions;  // guarded by the cache's mutex
};

WeightCache::WeightCache(int64_t limit, Executor* executor, MemoryBudget* budget)
    : limit_(limit), executor_(executor), budget_(budget) {
  budget_->SetReclaimer([this](int64_t bytes) { Reclaim(bytes); });
}

WeightCache::~WeightCache() { budget_->SetReclaimer(nullptr); }

void WeightCache::Keep(const std::string& tenant, const TensorHeader& header,
                       compression::Buffer bytes, Reservation memory) {
  const int64_t size = bytes.size();
  if (size > limit_) return;
  Key name(tenant, header.fingerprint().empty() ? header.digest() : header.fingerprint());
  auto weight = std::make_shared<CachedWeight>();
  weight->bytes = std::move(bytes);
  weight->memory = std::move(memory);
  Entries out;  // destroyed without the lock
  MutexLock lock(&mutex_);
  if (const auto same = by_name_.find(name); same != by_name_.end()) Remove(same->second, &out);
  Shrink(limit_ - size, &out);
  entries_.push_front({name, header.digest(), header, std::move(weight), nullptr});
  by_name_[std::move(name)] = entries_.begin();
  if (!header.digest().empty()) by_digest_[Key(tenant, header.digest())] = entries_.begin();
  bytes_ += size;
}

void WeightCache::Ask(const std::string& tenant, std::vector<std::string> fingerprints,
                      bool for_pruner, std::function<void(const std::vector<bool>&)> done) {
  // Answered by whoever lets go of it last: here, when there is nothing to hash.
  const std::shared_ptr<const Question> question(
      new Question{tenant, std::move(fingerprints), std::move(done)},
      [this](const Question* asked) {
        Answer(*asked);
        delete asked;
      });
  std::vector<std::shared_ptr<Hashing>> jobs;
  {
    MutexLock lock(&mutex_);
    for (const std::string& fingerprint : question->fingerprints) {
      const auto found = by_name_.find(Key(tenant, fingerprint));
      if (found == by_name_.end() || !found->second->digest.empty()) continue;
      Entry& entry = *found->second;
      if (entry.hashing == nullptr) {
        entry.hashing =
            std::make_shared<Hashing>(entry.name, entry.header, entry.weight, for_pruner);
        jobs.push_back(entry.hashing);
      }
      entry.hashing->questions.push_back(question);
    }
  }
  for (const auto& job : jobs) executor_->Schedule([this, job] { Hash(job); }, Work::kLong);
}

void WeightCache::Answer(const Question& question) {
  std::vector<bool> kept;
  {
    MutexLock lock(&mutex_);
    for (const std::string& fingerprint : question.fingerprints) {
      kept.push_back(by_name_.count(Key(question.tenant, fingerprint)) > 0);
    }
  }
  question.done(kept);
}

void WeightCache::Hash(const std::shared_ptr<Hashing>& job) {
  const compression::Buffer& bytes = job->weight->bytes;
  const int64_t size = std::min(kSliceBytes, bytes.size() - job->done);
  job->digest.Add(bytes.data() + job->done, size);
  job->done += size;
  if (job->done < bytes.size()) {
    executor_->Schedule([this, job] { Hash(job); }, Work::kLong);
  } else {
    HasDigest(job, job->digest.Finish());
  }
}

void WeightCache::HasDigest(const std::shared_ptr<Hashing>& job, std::string digest) {
  std::vector<std::shared_ptr<const Question>> questions;  // answered without the lock
  {
    MutexLock lock(&mutex_);
    questions.swap(job->questions);
    const auto found = by_name_.find(job->name);
    // It may have gone meanwhile, or another one have come.
    if (found != by_name_.end() && found->second->hashing == job) {
      Entry& entry = *found->second;
      entry.hashing = nullptr;
      entry.digest = digest;
      by_digest_[Key(job->name.first, std::move(digest))] = found->second;
    }
  }
  questions.clear();
  if (job->for_pruner && job->weight->bytes.size() >= kStatisticsBytes) {
    executor_->Schedule([this, job] { Prepare(*job); }, Work::kIdle);
  }
}

void WeightCache::Prepare(const Hashing& job) {
  const auto dtype = ToDataType(job.header.dtype(), "dtype");
  CachedWeight& weight = *job.weight;
  if (!dtype.ok()) return;
  weight.statistics.Prepare(*dtype, weight.bytes.data(),
                            weight.bytes.size() / compression::ByteLength(*dtype, 1));
  weight.statistics_memory = budget_->TryReserve(weight.statistics.bytes());
}

std::shared_ptr<CachedWeight> WeightCache::Find(absl::string_view tenant,
                                                const TensorHeader& header) {
  MutexLock lock(&mutex_);
  const auto found = by_digest_.find(Key(tenant, header.digest()));
  const bool hit = found != by_digest_.end() && IsOf(*found->second, header);
  ++(hit ? hits_ : misses_);
  if (!hit) return nullptr;
  entries_.splice(entries_.begin(), entries_, found->second);
  return found->second->weight;
}

bool WeightCache::IsOf(const Entry& entry, const TensorHeader& header) {
  return entry.header.dtype() == header.dtype() &&
         std::equal(entry.header.shape().begin(), entry.header.shape().end(),
                    header.shape().begin(), header.shape().end()) &&
         entry.weight->bytes.size() == static_cast<int64_t>(header.byte_length());
}

void WeightCache::Reclaim(int64_t bytes) {
  Entries out;  // gives its memory back without the lock
  {
    MutexLock lock(&mutex_);
    Shrink(std::max<int64_t>(0, bytes_ - bytes), &out);
  }
}

void WeightCache::Remove(Entries::iterator entry, Entries* out) {
  bytes_ -= entry->weight->bytes.size();
  by_name_.erase(entry->name);
  const auto digest = by_digest_.find(Key(entry->name.first, entry->digest));
  if (digest != by_digest_.end() && digest->second == entry) by_digest_.erase(digest);
  out->splice(out->end(), entries_, entry);
}

void WeightCache::Shrink(int64_t limit, Entries* out) {
  while (bytes_ > limit && !entries_.empty()) Remove(std::prev(entries_.end()), out);
}

int64_t WeightCache::bytes() const {
  MutexLock lock(&mutex_);
  return bytes_;
}

int64_t WeightCache::weights() const {
  MutexLock lock(&mutex_);
  return static_cast<int64_t>(entries_.size());
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
