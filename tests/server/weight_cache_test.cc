#include "server/weight_cache.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/escaping.h"
#include "tests/testing/latch.h"

namespace nni_compression::server {
namespace {

namespace v1 = ::nni::compression::v1;

using ::nni_compression::testing::Eventually;
using ::nni_compression::testing::Latch;

constexpr int64_t kWeightBytes = 1000;

v1::TensorHeader HeaderOf(const std::string& fingerprint, int64_t bytes = kWeightBytes) {
  v1::TensorHeader header;
  header.set_dtype(v1::DATA_TYPE_FLOAT32);
  header.add_shape(bytes / 4);
  header.set_byte_length(static_cast<uint64_t>(bytes));
  header.set_fingerprint(fingerprint);
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
                 *budget_->TryReserve(bytes), false);
  }

  // Idle work runs in order, on one thread.
  void Settle() {
    Latch done;
    executor_->Schedule([&] { done.Set(); }, Work::kIdle);
    done.Wait();
  }

  void KeepNow(const std::string& tenant, const std::string& fingerprint, char value) {
    Keep(tenant, fingerprint, value);
    Settle();
  }

  const std::shared_ptr<MemoryBudget> budget_ =
      MemoryBudget::Create(5000, [](std::function<void()> run) { run(); });
  std::unique_ptr<Executor> executor_ = std::make_unique<Executor>(2);
  std::unique_ptr<WeightCache> cache_ =
      std::make_unique<WeightCache>(3500, executor_.get(), budget_.get());
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

TEST_F(WeightCacheTest, FindsAWeightByItsDigestAndHintsByItsFingerprint) {
  EXPECT_FALSE(cache_->MayHave("t", "print"));
  EXPECT_EQ(cache_->Find("t", DigestOf('a')), nullptr);
  KeepNow("t", "print", 'a');
  EXPECT_TRUE(cache_->MayHave("t", "print"));
  const auto found = cache_->Find("t", DigestOf('a'));
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(found->bytes.data()[7], 'a');
  EXPECT_EQ(cache_->Find("t", DigestOf('b')), nullptr);
}

TEST_F(WeightCacheTest, AnotherTenantSeesNothing) {
  KeepNow("t", "print", 'a');
  EXPECT_FALSE(cache_->MayHave("other", "print"));
  EXPECT_EQ(cache_->Find("other", DigestOf('a')), nullptr);
  KeepNow("other", "print", 'a');
  EXPECT_EQ(cache_->weights(), 2) << "each tenant has its own";
}

TEST_F(WeightCacheTest, TheSameBytesAreKeptOnce) {
  KeepNow("t", "print", 'a');
  KeepNow("t", "print", 'a');
  EXPECT_EQ(cache_->weights(), 1);
  EXPECT_EQ(cache_->bytes(), kWeightBytes);
  EXPECT_EQ(budget_->reserved(), kWeightBytes);
}

TEST_F(WeightCacheTest, TheLeastRecentlyUsedGoesFirst) {
  for (const char value : {'a', 'b', 'c'}) KeepNow("t", std::string("print ") + value, value);
  EXPECT_NE(cache_->Find("t", DigestOf('a')), nullptr);
  KeepNow("t", "print d", 'd');
  EXPECT_EQ(cache_->Find("t", DigestOf('b')), nullptr);
  EXPECT_FALSE(cache_->MayHave("t", "print b"));
  for (const char value : {'a', 'c', 'd'}) EXPECT_NE(cache_->Find("t", DigestOf(value)), nullptr);
  EXPECT_EQ(budget_->reserved(), 3 * kWeightBytes);
}

TEST_F(WeightCacheTest, AFingerprintIsKnownAsLongAsOneOfItsWeightsIs) {
  KeepNow("t", "same", 'a');
  KeepNow("t", "same", 'b');
  cache_->Reclaim(1);
  EXPECT_EQ(cache_->Find("t", DigestOf('a')), nullptr);
  EXPECT_TRUE(cache_->MayHave("t", "same"));
  cache_->Reclaim(1);
  EXPECT_FALSE(cache_->MayHave("t", "same"));
}

TEST_F(WeightCacheTest, GivesWayToUploads) {
  for (const char value : {'a', 'b', 'c'}) KeepNow("t", "print", value);
  EXPECT_EQ(budget_->reserved(), 3000);
  const auto upload = budget_->TryReserve(4000);
  ASSERT_TRUE(upload.has_value());
  EXPECT_EQ(cache_->bytes(), kWeightBytes);
  EXPECT_NE(cache_->Find("t", DigestOf('c')), nullptr) << "the newest one is left";
}

TEST_F(WeightCacheTest, GivesWayToUploadsThatWait) {
  auto other = budget_->TryReserve(2000);
  for (const char value : {'a', 'b', 'c'}) KeepNow("t", "print", value);
  bool granted = false;
  budget_->Reserve(4500, [&](Reservation) { granted = true; });
  EXPECT_FALSE(granted);
  EXPECT_EQ(cache_->bytes(), 0);
  other.reset();
  EXPECT_TRUE(granted);
}

TEST_F(WeightCacheTest, WhoHoldsAWeightKeepsItAndItsMemory) {
  KeepNow("t", "print", 'a');
  auto held = cache_->Find("t", DigestOf('a'));
  cache_->Reclaim(kWeightBytes);
  EXPECT_EQ(cache_->weights(), 0);
  EXPECT_EQ(held->bytes.data()[0], 'a');
  EXPECT_EQ(budget_->reserved(), kWeightBytes) << "it is still there";
  held.reset();
  EXPECT_EQ(budget_->reserved(), 0);
}

TEST_F(WeightCacheTest, AWeightThatDoesNotFitIsNotKept) {
  Keep("t", "print", 'a', 4000);
  Settle();
  EXPECT_EQ(cache_->weights(), 0);
  EXPECT_EQ(budget_->reserved(), 0);
}

TEST_F(WeightCacheTest, WhatWaitsToBeHashedIsBounded) {
  Latch release, busy;
  executor_->Schedule(
      [&] {
        busy.Set();
        release.Wait();
      },
      Work::kIdle);
  busy.Wait();
  for (const char value : {'a', 'b', 'c', 'd'}) Keep("t", "print", value);
  EXPECT_EQ(budget_->reserved(), 3000) << "the fourth is not taken";
  release.Set();
  Settle();
  EXPECT_EQ(cache_->weights(), 3);
}

TEST_F(WeightCacheTest, NothingIsKeptWithoutABudget) {
  cache_ = std::make_unique<WeightCache>(0, executor_.get(), budget_.get());
  KeepNow("t", "print", 'a');
  EXPECT_EQ(cache_->weights(), 0);
  EXPECT_EQ(budget_->reserved(), 0);
}

TEST_F(WeightCacheTest, SeveralThreadsMayUseItAtOnce) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      for (int i = 0; i < 200; ++i) {
        const auto value = static_cast<char>('a' + (i + t) % 7);
        if (auto memory = budget_->TryReserve(kWeightBytes)) {
          cache_->Keep("t", HeaderOf(std::string("print ") + value), Filled(value),
                       *std::move(memory), false);
        }
        const auto found = cache_->Find("t", DigestOf(value));
        if (found != nullptr) {
          EXPECT_EQ(found->bytes.data()[0], value);
        }
        if (i % 50 == 0) cache_->Reclaim(2000);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  Settle();
  cache_->Reclaim(budget_->limit());
  EXPECT_EQ(cache_->bytes(), 0);
  EXPECT_EQ(budget_->reserved(), 0);
}

}  // namespace
}  // namespace nni_compression::server
