#include "server/tensors/weight_cache.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/escaping.h"
#include "server/limits/memory_costs.h"
#include "tests/testing/latch.h"

namespace nni_compression::server {
namespace {

namespace v1 = ::nni::compression::v1;

using ::nni_compression::testing::Eventually;
using ::nni_compression::testing::Latch;

constexpr int64_t kWeightBytes = 1000;
constexpr int64_t kCost = kWeightBytes + kCachedWeightBytes;

v1::TensorHeader HeaderOf(const std::string& fingerprint, int64_t bytes = kWeightBytes) {
  v1::TensorHeader header;
  header.set_dtype(v1::DATA_TYPE_FLOAT32);
  header.add_shape(bytes / 4);
  header.set_byte_length(static_cast<uint64_t>(bytes));
  header.set_fingerprint(fingerprint);
  return header;
}

// What a trainer sends that expects the bytes to be known.
v1::TensorHeader Named(const std::string& digest, int64_t bytes = kWeightBytes) {
  v1::TensorHeader header = HeaderOf("", bytes);
  header.set_digest(digest);
  return header;
}

compression::Buffer Filled(char value, int64_t bytes = kWeightBytes) {
  compression::Buffer buffer = compression::Buffer::Allocate(bytes);
  std::memset(buffer.data(), value, static_cast<size_t>(bytes));
  return buffer;
}

class WeightCacheTest : public ::testing::Test {
 protected:
  std::string DigestOf(char value) { return TensorDigest::Of(HeaderOf(""), Filled(value)); }

  void Keep(const std::string& tenant, const std::string& fingerprint, char value,
            int64_t bytes = kWeightBytes) {
    cache_->Keep(tenant, HeaderOf(fingerprint, bytes), Filled(value, bytes),
                 *budget_->TryReserve(bytes));
  }

  std::vector<bool> Ask(const std::string& tenant, const std::vector<std::string>& fingerprints) {
    std::vector<bool> answer;
    Latch done;
    cache_->Ask(tenant, fingerprints, [&](const std::vector<bool>& kept) {
      answer = kept;
      done.Set();
    });
    done.Wait();
    return answer;
  }
  bool MayHave(const std::string& tenant, const std::string& fingerprint) {
    return Ask(tenant, {fingerprint})[0];
  }

  // So that it can be found.
  void KeepAsked(const std::string& tenant, const std::string& fingerprint, char value) {
    Keep(tenant, fingerprint, value);
    ASSERT_TRUE(MayHave(tenant, fingerprint));
  }

  const std::shared_ptr<MemoryBudget> budget_ =
      MemoryBudget::Create(5 * kCost, [](std::function<void()> run) { run(); });
  std::unique_ptr<Executor> executor_ = std::make_unique<Executor>(2);
  std::unique_ptr<WeightCache> cache_ =
      std::make_unique<WeightCache>(7 * kCost / 2, executor_.get(), budget_.get());
};

TEST_F(WeightCacheTest, TheDigestIsSha256OfTypeShapeAndBytes) {
  v1::TensorHeader header;
  header.set_dtype(v1::DATA_TYPE_FLOAT32);
  header.add_shape(2);
  header.add_shape(1);
  compression::Buffer bytes = compression::Buffer::Allocate(8);
  std::memcpy(bytes.data(), "\0\0\x80\x3f\0\0\0\x40", 8);
  // hashlib.sha256(struct.pack("<BI2q2f", 1, 2, 2, 1, 1.0, 2.0)).hexdigest()
  EXPECT_EQ(absl::BytesToHexString(TensorDigest::Of(header, bytes)),
            "64f40a5978242a7e231d806af7aec6b3bb9e543f668571185ad895e4bd79bef5");
}

TEST_F(WeightCacheTest, FindsAWeightByItsDigestOnceSomebodyAskedForItsFingerprint) {
  EXPECT_FALSE(MayHave("t", "print"));
  Keep("t", "print", 'a');
  EXPECT_EQ(cache_->Find("t", Named(DigestOf('a'))), nullptr);
  EXPECT_TRUE(MayHave("t", "print"));
  const auto found = cache_->Find("t", Named(DigestOf('a')));
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(found->bytes().data()[7], 'a');
  EXPECT_EQ(cache_->Find("t", Named(DigestOf('b'))), nullptr);
}

TEST_F(WeightCacheTest, AWeightThatCameWithItsDigestIsFoundAtOnce) {
  v1::TensorHeader header = HeaderOf("");
  header.set_digest(DigestOf('a'));
  cache_->Keep("t", header, Filled('a'), *budget_->TryReserve(kWeightBytes));
  EXPECT_NE(cache_->Find("t", Named(DigestOf('a'))), nullptr);
}

TEST_F(WeightCacheTest, ADigestInAHeaderOfAnotherTensorFindsNothing) {
  KeepAsked("t", "print", 'a');
  const v1::TensorHeader right = Named(DigestOf('a'));
  ASSERT_NE(cache_->Find("t", right), nullptr);

  v1::TensorHeader header = right;
  header.set_dtype(v1::DATA_TYPE_FLOAT64);
  EXPECT_EQ(cache_->Find("t", header), nullptr);
  for (const std::vector<int64_t>& shape : std::vector<std::vector<int64_t>>{
           {}, {kWeightBytes}, {kWeightBytes / 4, 1}, {1}, {25, 10}}) {
    header = right;
    header.clear_shape();
    for (const int64_t dimension : shape) header.add_shape(dimension);
    EXPECT_EQ(cache_->Find("t", header), nullptr) << header.ShortDebugString();
  }
  for (const int64_t bytes : {int64_t{0}, kWeightBytes - 1, kWeightBytes + 1, 4 * kWeightBytes}) {
    header = right;
    header.set_byte_length(static_cast<uint64_t>(bytes));
    EXPECT_EQ(cache_->Find("t", header), nullptr) << bytes;
  }
}

TEST_F(WeightCacheTest, AnswersAboutManyAtOnce) {
  Keep("t", "a", 'a');
  Keep("t", "c", 'c');
  EXPECT_EQ(Ask("t", {"a", "b", "c", "a"}), (std::vector<bool>{true, false, true, true}));
  EXPECT_EQ(Ask("t", {}), std::vector<bool>());
}

TEST_F(WeightCacheTest, WhoAsksWaitsForADigestThatIsBeingComputed) {
  // The executor does long work on one of its two threads.
  Latch release, busy;
  executor_->Schedule(
      [&] {
        busy.Set();
        release.Wait();
      },
      Work::kLong);
  busy.Wait();
  Keep("t", "print", 'a');
  std::atomic<int> answered = 0;
  Latch first, second;
  cache_->Ask("t", {"print"}, [&](const std::vector<bool>&) {
    ++answered;
    first.Set();
  });
  cache_->Ask("t", {"print"}, [&](const std::vector<bool>& kept) {
    EXPECT_TRUE(kept[0]);
    ++answered;
    second.Set();
  });
  EXPECT_EQ(answered, 0);
  release.Set();
  first.Wait();
  second.Wait();
  EXPECT_NE(cache_->Find("t", Named(DigestOf('a'))), nullptr);
}

TEST_F(WeightCacheTest, AWeightThatGoesWhileItIsHashedIsNotKept) {
  Latch release, busy;
  executor_->Schedule(
      [&] {
        busy.Set();
        release.Wait();
      },
      Work::kLong);
  busy.Wait();
  Keep("t", "print", 'a');
  Latch done;
  cache_->Ask("t", {"print"}, [&](const std::vector<bool>& kept) {
    EXPECT_FALSE(kept[0]);
    done.Set();
  });
  cache_->Reclaim(kWeightBytes);
  release.Set();
  done.Wait();
  EXPECT_EQ(cache_->Find("t", Named(DigestOf('a'))), nullptr);
}

TEST_F(WeightCacheTest, AnotherTenantSeesNothing) {
  KeepAsked("t", "print", 'a');
  EXPECT_FALSE(MayHave("other", "print"));
  EXPECT_EQ(cache_->Find("other", Named(DigestOf('a'))), nullptr);
  KeepAsked("other", "print", 'a');
  EXPECT_EQ(cache_->weights(), 2) << "each tenant has its own";
}

TEST_F(WeightCacheTest, AWeightTakesThePlaceOfTheOneWithItsFingerprint) {
  KeepAsked("t", "print", 'a');
  KeepAsked("t", "print", 'b');
  EXPECT_EQ(cache_->weights(), 1);
  EXPECT_EQ(cache_->bytes(), kCost);
  EXPECT_TRUE(Eventually([&] { return budget_->reserved() == kCost; }));  // the executor had both
  EXPECT_EQ(cache_->Find("t", Named(DigestOf('a'))), nullptr);
  EXPECT_NE(cache_->Find("t", Named(DigestOf('b'))), nullptr);
}

TEST_F(WeightCacheTest, TheSameBytesUnderTwoFingerprintsAreFoundAsLongAsTheLaterOneIsKept) {
  KeepAsked("t", "one", 'a');
  KeepAsked("t", "two", 'a');
  cache_->Reclaim(1);
  EXPECT_EQ(cache_->weights(), 1);
  EXPECT_NE(cache_->Find("t", Named(DigestOf('a'))), nullptr);
  cache_->Reclaim(1);
  EXPECT_EQ(cache_->Find("t", Named(DigestOf('a'))), nullptr);
}

TEST_F(WeightCacheTest, TheLeastRecentlyUsedGoesFirst) {
  for (const char value : {'a', 'b', 'c'}) KeepAsked("t", std::string("print ") + value, value);
  EXPECT_NE(cache_->Find("t", Named(DigestOf('a'))), nullptr);
  KeepAsked("t", "print d", 'd');
  EXPECT_EQ(cache_->Find("t", Named(DigestOf('b'))), nullptr);
  EXPECT_FALSE(MayHave("t", "print b"));
  for (const char value : {'a', 'c', 'd'})
    EXPECT_NE(cache_->Find("t", Named(DigestOf(value))), nullptr);
  EXPECT_TRUE(Eventually([&] { return budget_->reserved() == 3 * kCost; }));
}

TEST_F(WeightCacheTest, GivesWayToUploads) {
  for (const char value : {'a', 'b', 'c'}) KeepAsked("t", std::string(1, value), value);
  EXPECT_TRUE(Eventually([&] { return budget_->reserved() == 3 * kCost; }));
  const auto upload = budget_->TryReserve(4 * kCost);
  ASSERT_TRUE(upload.has_value());
  EXPECT_EQ(cache_->bytes(), kCost);
  EXPECT_NE(cache_->Find("t", Named(DigestOf('c'))), nullptr) << "the newest one is left";
}

TEST_F(WeightCacheTest, GivesWayToUploadsThatWait) {
  auto other = budget_->TryReserve(2 * kCost);
  for (const char value : {'a', 'b', 'c'}) Keep("t", std::string(1, value), value);
  bool granted = false;
  ASSERT_TRUE(budget_->Reserve(9 * kCost / 2, {}, [&](Reservation) { granted = true; }).ok());
  EXPECT_FALSE(granted);
  EXPECT_EQ(cache_->bytes(), 0);
  other.reset();
  EXPECT_TRUE(granted);
}

TEST_F(WeightCacheTest, WhoHoldsAWeightKeepsItAndItsMemory) {
  KeepAsked("t", "print", 'a');
  auto held = cache_->Find("t", Named(DigestOf('a')));
  cache_->Reclaim(kWeightBytes);
  EXPECT_EQ(cache_->weights(), 0);
  EXPECT_EQ(held->bytes().data()[0], 'a');
  EXPECT_EQ(budget_->reserved(), kCost) << "it is still there";
  held.reset();
  EXPECT_TRUE(Eventually([&] { return budget_->reserved() == 0; }));  // the executor had it too
}

TEST_F(WeightCacheTest, AWeightThatDoesNotFitIsNotKept) {
  Keep("t", "print", 'a', 4 * kCost);
  EXPECT_EQ(cache_->weights(), 0);
  EXPECT_EQ(budget_->reserved(), 0);
}

TEST_F(WeightCacheTest, NothingIsKeptWithoutABudget) {
  cache_ = std::make_unique<WeightCache>(0, executor_.get(), budget_.get());
  Keep("t", "print", 'a');
  EXPECT_EQ(cache_->weights(), 0);
  EXPECT_EQ(budget_->reserved(), 0);
}

TEST_F(WeightCacheTest, WhatFindingAWeightTakesIsCounted) {
  for (int i = 0; i < 1000; ++i) Keep("t", std::to_string(i), 'a', /*bytes=*/4);
  EXPECT_EQ(cache_->weights(), 7 * kCost / 2 / (kCachedWeightBytes + 4));
  EXPECT_LE(cache_->bytes(), cache_->limit());
  EXPECT_EQ(cache_->bytes(), cache_->weights() * (kCachedWeightBytes + 4));
  EXPECT_EQ(budget_->reserved(), cache_->bytes());
}

TEST_F(WeightCacheTest, WeightsOfTheTenantWithMostAreEvicted) {
  KeepAsked("small", "print", 'a');
  for (const char value : {'b', 'c', 'd', 'e'}) KeepAsked("large", std::string(1, value), value);
  EXPECT_TRUE(MayHave("small", "print"));
  EXPECT_NE(cache_->Find("small", Named(DigestOf('a'))), nullptr);
  EXPECT_EQ(cache_->Find("large", Named(DigestOf('b'))), nullptr);
  EXPECT_EQ(cache_->Find("large", Named(DigestOf('c'))), nullptr);
  EXPECT_EQ(cache_->weights(), 3);
}

TEST_F(WeightCacheTest, ManyQuestionsAboutManyWeightsAreAllAnswered) {
  const auto budget = MemoryBudget::Create(100 << 20, [](std::function<void()> run) { run(); });
  WeightCache cache(100 << 20, executor_.get(), budget.get());
  std::vector<std::string> prints;
  for (int i = 0; i < 5000; ++i) {
    prints.push_back("print " + std::to_string(i));
    cache.Keep("t", HeaderOf(prints.back()), Filled(static_cast<char>(i)),
               *budget->TryReserve(kWeightBytes));
  }
  constexpr int kQuestions = 8;
  std::atomic<int> right = 0;
  Latch answered[kQuestions];
  for (Latch& latch : answered) {
    cache.Ask("t", prints, [&](const std::vector<bool>& kept) {
      right += kept == std::vector<bool>(prints.size(), true);
      latch.Set();
    });
  }
  for (Latch& latch : answered) latch.Wait();
  EXPECT_EQ(right, kQuestions);
  EXPECT_NE(cache.Find("t", Named(DigestOf(7))), nullptr);
  executor_ = nullptr;  // before the cache
}

TEST(WeightCacheStatisticsTest, RangesOfManyGroupsAreCounted) {
  constexpr int64_t kBytes = 1 << 20;
  const auto budget = MemoryBudget::Create(4 * kBytes, [](std::function<void()> run) { run(); });
  Executor executor(1);
  WeightCache cache(4 * kBytes, &executor, budget.get());
  v1::TensorHeader header = HeaderOf("", kBytes);
  header.set_digest(TensorDigest::Of(header, Filled(0, kBytes)));
  cache.Keep("t", header, Filled(0, kBytes), *budget->TryReserve(kBytes));
  const auto weight = cache.Find("t", header);
  ASSERT_NE(weight, nullptr);
  compression::Range range;
  range.minimum.resize(kBytes / 4);
  range.maximum.resize(kBytes / 4);
  weight->statistics().SetRange({0, 1}, range);  // two numbers for each weight
  EXPECT_TRUE(weight->statistics().range({0, 1}));
  EXPECT_GT(cache.bytes(), 3 * kBytes);
  EXPECT_EQ(budget->reserved(), cache.bytes());
  weight->statistics().SetRange({0, 2}, range);
  EXPECT_FALSE(weight->statistics().range({0, 2})) << "there is no memory for it";
  cache.Reclaim(kBytes);
  EXPECT_EQ(cache.bytes(), 0);
}

TEST_F(WeightCacheTest, SeveralThreadsMayUseItAtOnce) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      for (int i = 0; i < 200; ++i) {
        const auto value = static_cast<char>('a' + (i + t) % 7);
        const std::string fingerprint(1, value);
        if (auto memory = budget_->TryReserve(kWeightBytes)) {
          cache_->Keep("t", HeaderOf(fingerprint), Filled(value), *std::move(memory));
        }
        if (i % 3 == 0) MayHave("t", fingerprint);
        const auto found = cache_->Find("t", Named(DigestOf(value)));
        if (found != nullptr) {
          EXPECT_EQ(found->bytes().data()[0], value);
        }
        if (i % 50 == 0) cache_->Reclaim(2 * kCost);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  cache_->Reclaim(budget_->limit());
  EXPECT_EQ(cache_->bytes(), 0);
  EXPECT_TRUE(Eventually([&] { return budget_->reserved() == 0; }));
}

}  // namespace
}  // namespace nni_compression::server
