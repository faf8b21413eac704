#include "server/tensors/weight_cache.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

#include "server/convert/convert.h"
#include "server/limits/prices.h"

namespace nni_compression::server {

using nni::compression::v1::TensorHeader;

namespace {

// Hashed without a pause: a few milliseconds; and in work that is to be short.
constexpr int64_t kSliceBytes = 8 << 20;
constexpr int64_t kShortBytes = 64 << 10;

// Names that are looked up without letting go of the lock, and bytes that are hashed in that time.
constexpr size_t kNamesAtATime = 1024;
constexpr size_t kFewNames = 64;  // not worth another thread
constexpr int64_t kNamesBytes = 128 << 10;

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

// What a digest is about, beside the bytes.
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

// A caller that waits for digests; the last one to let go of it answers it.
struct WeightCache::Question {
  Question(const std::string& tenant, std::vector<std::string> fingerprints, bool for_pruner,
           std::function<void(const std::vector<bool>&)> done)
      : tenant(tenant),
        fingerprints(std::move(fingerprints)),
        for_pruner(for_pruner),
        done(std::move(done)) {}

  const std::string tenant;
  const std::vector<std::string> fingerprints;
  const bool for_pruner;
  const std::function<void(const std::vector<bool>&)> done;
  // Guarded by the cache's mutex.
  size_t next = 0;  // of the fingerprints
  int walkers = 1;
};

// A weight whose digest is being computed, for a question, and others that wait for it.
struct WeightCache::Hashing {
  Hashing(const std::string& tenant, const std::string& name, std::shared_ptr<CachedWeight> weight,
          const TensorHeader& kind)
      : tenant(tenant), name(name), weight(std::move(weight)), digest(kind) {}

  const std::string tenant;
  const std::string name;
  const std::shared_ptr<CachedWeight> weight;
  TensorDigest digest;
  int64_t done = 0;
  std::vector<std::shared_ptr<Question>> questions;  // guarded by the cache's mutex
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
  if (const auto shelf = shelves_.find(tenant); shelf != shelves_.end()) {
    const auto same = shelf->second.by_name.find(name);
    if (same != shelf->second.by_name.end()) Remove(shelf, same->second, &out);
  }
  Shrink(limit_ - size, &out);
  weight->memory_.push_back(std::move(memory));
  weight->memory_.push_back(*std::move(overhead));
  weight->tenant_ = tenant;
  weight->counted_ = size;
  weight->kept_ = true;
  Shelf& shelf = shelves_[tenant];
  shelf.entries.push_front({name, header.digest(), std::move(weight), nullptr});
  shelf.by_name[name] = shelf.entries.begin();
  if (!header.digest().empty()) shelf.by_digest[header.digest()] = shelf.entries.begin();
  shelf.bytes += size;
  bytes_ += size;
  ++weights_;
}

void WeightCache::Ask(const std::string& tenant, std::vector<std::string> fingerprints,
                      bool for_pruner, std::function<void(const std::vector<bool>&)> done) {
  const size_t count = fingerprints.size();
  const std::shared_ptr<Question> question(
      new Question(tenant, std::move(fingerprints), for_pruner, std::move(done)),
      [this](const Question* asked) {
        Answer(*asked);
        delete asked;
      });
  std::shared_ptr<Hashing> job;
  if (count <= kFewNames) {
    job = NextJob(question);
    if (job == nullptr) return;  // all have their digests
  }
  const Work work = job == nullptr && count <= kNamesAtATime ? Work::kShort : Work::kLong;
  executor_->Schedule([this, question, job, work] { Walk(question, job, work); }, work);
}

void WeightCache::Walk(const std::shared_ptr<Question>& question, std::shared_ptr<Hashing> job,
                       Work work) {
  int64_t left = work == Work::kShort ? kShortBytes : kSliceBytes;
  while (left > 0) {
    if (job == nullptr) {
      job = NextJob(question);
      if (job == nullptr && IsThrough(*question)) return;
      left -= kNamesBytes;
      if (job == nullptr) continue;
    }
    const compression::Buffer& bytes = job->weight->bytes();
    const int64_t size = std::min(std::max(left, kShortBytes), bytes.size() - job->done);
    job->digest.Add(bytes.data() + job->done, size);
    job->done += size;
    left -= size;
    if (job->done < bytes.size()) continue;
    HasDigest(*job, job->digest.Finish());
    job = nullptr;
  }
  executor_->Schedule([this, question, job] { Walk(question, job, Work::kLong); }, Work::kLong);
}

std::shared_ptr<WeightCache::Hashing> WeightCache::NextJob(
    const std::shared_ptr<Question>& question) {
  std::shared_ptr<Hashing> job;
  bool help = false;
  {
    MutexLock lock(&mutex_);
    const std::vector<std::string>& names = question->fingerprints;
    const size_t end = std::min(names.size(), question->next + kNamesAtATime);
    while (question->next < end && job == nullptr) {
      const std::string& name = names[question->next++];
      Entry* const entry = FindName(question->tenant, name);
      if (entry == nullptr || !entry->digest.empty()) continue;
      if (entry->hashing == nullptr) {
        job =
            std::make_shared<Hashing>(question->tenant, name, entry->weight, entry->weight->kind_);
        entry->hashing = job;
      }
      entry->hashing->questions.push_back(question);
    }
    // There is more than one thread can do: others take their part of the names.
    help =
        job != nullptr && question->next < names.size() && question->walkers < executor_->threads();
    if (help) ++question->walkers;
  }
  if (help) {
    executor_->Schedule([this, question] { Walk(question, nullptr, Work::kLong); }, Work::kLong);
  }
  return job;
}

bool WeightCache::IsThrough(const Question& question) const {
  MutexLock lock(&mutex_);
  return question.next == question.fingerprints.size();
}

void WeightCache::Answer(const Question& question) {
  std::vector<bool> kept;
  kept.reserve(question.fingerprints.size());
  while (kept.size() < question.fingerprints.size()) {
    MutexLock lock(&mutex_);  // anew now and then, as calls look for digests meanwhile
    const size_t end = std::min(question.fingerprints.size(), kept.size() + kNamesAtATime);
    while (kept.size() < end) {
      kept.push_back(FindName(question.tenant, question.fingerprints[kept.size()]) != nullptr);
    }
  }
  question.done(kept);
}

void WeightCache::HasDigest(const Hashing& job, const std::string& digest) {
  bool for_pruner = false;
  std::vector<std::shared_ptr<Question>> questions;  // answered without the lock
  {
    MutexLock lock(&mutex_);
    questions = job.questions;
    Entry* const entry = FindName(job.tenant, job.name);
    // It may have gone meanwhile, or another one have come.
    if (entry != nullptr && entry->hashing.get() == &job) {
      entry->hashing = nullptr;
      entry->digest = digest;
      Shelf& shelf = shelves_.find(job.tenant)->second;
      shelf.by_digest[digest] = shelf.by_name.find(job.name)->second;
    }
  }
  for (const auto& question : questions) for_pruner |= question->for_pruner;
  if (for_pruner && job.weight->bytes().size() >= kStatisticsBytes) {
    executor_->Schedule([this, weight = job.weight] { Prepare(*weight); }, Work::kIdle);
  }
}

void WeightCache::Prepare(CachedWeight& weight) {
  const auto dtype = ToDataType(weight.kind_.dtype(), "dtype");
  if (!dtype.ok()) return;
  weight.statistics().Prepare(*dtype, weight.bytes().data(),
                              weight.bytes().size() / compression::ByteLength(*dtype, 1));
}

bool WeightCache::Admit(CachedWeight* weight, int64_t bytes) {
  std::optional<Reservation> memory = budget_->TryReserve(bytes);
  if (!memory) return false;
  Entries out;
  MutexLock lock(&mutex_);
  weight->memory_.push_back(*std::move(memory));
  if (!weight->kept_) return true;  // for the calls that hold it
  weight->counted_ += bytes;
  bytes_ += bytes;
  shelves_.find(weight->tenant_)->second.bytes += bytes;
  Shrink(limit_, &out);
  return true;
}

std::shared_ptr<CachedWeight> WeightCache::Find(absl::string_view tenant,
                                                const TensorHeader& header) {
  MutexLock lock(&mutex_);
  const auto shelf = shelves_.find(tenant);
  if (shelf != shelves_.end()) {
    const auto found = shelf->second.by_digest.find(header.digest());
    if (found != shelf->second.by_digest.end() && found->second->weight->Is(header)) {
      ++hits_;
      Entries& entries = shelf->second.entries;
      entries.splice(entries.begin(), entries, found->second);
      return found->second->weight;
    }
  }
  ++misses_;
  return nullptr;
}

void WeightCache::Reclaim(int64_t bytes) {
  Entries out;  // gives its memory back without the lock
  {
    MutexLock lock(&mutex_);
    Shrink(std::max<int64_t>(0, bytes_ - bytes), &out);
  }
}

WeightCache::Entry* WeightCache::FindName(absl::string_view tenant, const std::string& name) {
  const auto shelf = shelves_.find(tenant);
  if (shelf == shelves_.end()) return nullptr;
  const auto found = shelf->second.by_name.find(name);
  return found == shelf->second.by_name.end() ? nullptr : &*found->second;
}

void WeightCache::Remove(Shelves::iterator shelf, Entries::iterator entry, Entries* out) {
  CachedWeight& weight = *entry->weight;
  weight.kept_ = false;
  shelf->second.bytes -= weight.counted_;
  bytes_ -= weight.counted_;
  --weights_;
  shelf->second.by_name.erase(entry->name);
  const auto digest = shelf->second.by_digest.find(entry->digest);
  if (digest != shelf->second.by_digest.end() && digest->second == entry) {
    shelf->second.by_digest.erase(digest);
  }
  out->splice(out->end(), shelf->second.entries, entry);
  if (shelf->second.entries.empty()) shelves_.erase(shelf);
}

void WeightCache::Shrink(int64_t limit, Entries* out) {
  while (bytes_ > limit && !shelves_.empty()) {
    const auto largest = std::max_element(
        shelves_.begin(), shelves_.end(),
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
