// What every storage does. A new one is a line at the end.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/storage/disk_storage.h"
#include "server/storage/memory_storage.h"

namespace nni_compression::server {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;

constexpr int kManyBytes = 1 << 20;  // more than is kept in a row of anything

// A kind of storage, and a place for it.
class Place {
 public:
  virtual ~Place() = default;
  // The storage; `again`: one that finds what an earlier one wrote. The earlier one is gone.
  virtual std::unique_ptr<Storage> Open() = 0;
};

class DiskPlace : public Place {
 public:
  explicit DiskPlace(DurabilityLevel durability) : durability_(durability) {
    std::string pattern = ::testing::TempDir() + "/storageXXXXXX";
    directory_ = mkdtemp(pattern.data());
  }
  ~DiskPlace() override { std::filesystem::remove_all(directory_); }
  std::unique_ptr<Storage> Open() override {
    auto storage = DiskStorage::Open({directory_, durability_, absl::ZeroDuration()});
    EXPECT_TRUE(storage.ok()) << storage.status();
    return *std::move(storage);
  }

 private:
  const DurabilityLevel durability_;
  std::string directory_;
};

class MemoryPlace : public Place {
 public:
  std::unique_ptr<Storage> Open() override { return std::make_unique<Handle>(&storage_); }

 private:
  class Handle : public Storage {
   public:
    explicit Handle(Storage* storage) : storage_(storage) {}
    std::vector<absl::Status> Apply(absl::Span<const SessionChange> changes) override {
      return storage_->Apply(changes);
    }
    absl::StatusOr<std::vector<CatalogueRow>> List() override { return storage_->List(); }
    absl::StatusOr<StoredSession> Load(const SessionKey& key) override {
      return storage_->Load(key);
    }
    absl::StatusOr<std::string> LoadReport(const SessionKey& key) override {
      return storage_->LoadReport(key);
    }

   private:
    Storage* const storage_;
  };

  MemoryStorage storage_;
};

struct Kind {
  std::string name;
  std::function<std::unique_ptr<Place>()> make;
};

SessionChange Create(const SessionKey& key, uint64_t sequence = 1) {
  SessionChange change;
  change.key = key;
  change.create.emplace();
  change.create->row.key = key;
  change.create->row.sequence = sequence;
  change.create->row.lease = absl::Seconds(90);
  change.create->row.request_id = "request";
  change.create->row.fingerprint = std::string("\0\xff", 2);
  change.create->row.entry = "entry";
  change.create->binding = "binding";
  change.global = "global";
  return change;
}

SessionChange Layer(const SessionKey& key, int layer, const std::string& record) {
  SessionChange change;
  change.key = key;
  change.layers[layer] = [record] { return record; };
  return change;
}

SessionChange End(const SessionKey& key, const std::string& report) {
  SessionChange change;
  change.key = key;
  change.report = report;
  return change;
}

SessionChange Erase(const SessionKey& key) {
  SessionChange change;
  change.key = key;
  change.erase = true;
  return change;
}

class StorageContractTest : public ::testing::TestWithParam<Kind> {
 protected:
  absl::Status Apply(const SessionChange& change) { return storage_->Apply({&change, 1})[0]; }

  // What a process that starts now finds.
  void Restart() {
    storage_.reset();
    storage_ = place_->Open();
  }

  void CollectAllGarbage() {
    while (storage_->CollectGarbage()) {
    }
  }

  const SessionKey a_ = {"tenant", "a"};
  const SessionKey b_ = {"tenant", "b"};
  std::unique_ptr<Place> place_ = GetParam().make();
  std::unique_ptr<Storage> storage_ = place_->Open();
};

TEST_P(StorageContractTest, WhatWasAppliedIsThereAfterARestart) {
  ASSERT_TRUE(Apply(Create(a_)).ok());
  ASSERT_TRUE(Apply(Layer(a_, 3, "small")).ok());
  ASSERT_TRUE(Apply(Layer(a_, 0, std::string(kManyBytes, 'x'))).ok());
  SessionChange change;
  change.key = a_;
  change.global = "global 2";
  change.entry = "entry 2";
  ASSERT_TRUE(Apply(change).ok());
  Restart();

  const auto rows = storage_->List();
  ASSERT_EQ(rows->size(), 1u);
  const CatalogueRow& row = (*rows)[0];
  EXPECT_EQ(row.key, a_);
  EXPECT_EQ(row.sequence, 1u);
  EXPECT_FALSE(row.ended);
  EXPECT_EQ(row.lease, absl::Seconds(90));
  EXPECT_EQ(row.request_id, "request");
  EXPECT_EQ(row.fingerprint, std::string("\0\xff", 2));
  EXPECT_EQ(row.entry, "entry 2");
  const auto session = storage_->Load(a_);
  EXPECT_EQ(session->entry, "entry 2");
  EXPECT_EQ(session->binding, "binding");
  EXPECT_EQ(session->global, "global 2");
  EXPECT_THAT(session->layers,
              ElementsAre(Pair(0, std::string(kManyBytes, 'x')), Pair(3, "small")));
}

TEST_P(StorageContractTest, EmptyBytesComeBackAsTheyAre) {
  SessionChange change = Create(a_);
  change.create->binding.clear();
  change.create->row.entry.clear();
  change.global = "";
  ASSERT_TRUE(Apply(change).ok());
  ASSERT_TRUE(Apply(Layer(a_, 0, "")).ok());
  Restart();
  EXPECT_THAT(storage_->Load(a_)->layers, ElementsAre(Pair(0, "")));
}

TEST_P(StorageContractTest, TheLastRecordOfALayerCounts) {
  ASSERT_TRUE(Apply(Create(a_)).ok());
  for (const char letter : {'x', 'y', 'x', 'z'}) {
    ASSERT_TRUE(Apply(Layer(a_, 0, std::string(kManyBytes, letter))).ok());
    CollectAllGarbage();
    EXPECT_EQ(storage_->Load(a_)->layers[0], std::string(kManyBytes, letter));
  }
}

TEST_P(StorageContractTest, SessionsThatShareARecordDoNotShareItsEnd) {
  ASSERT_TRUE(Apply(Create(a_)).ok());
  ASSERT_TRUE(Apply(Create(b_, 2)).ok());
  ASSERT_TRUE(Apply(Layer(a_, 0, std::string(kManyBytes, 'x'))).ok());
  ASSERT_TRUE(Apply(Layer(b_, 0, std::string(kManyBytes, 'x'))).ok());
  ASSERT_TRUE(Apply(End(a_, "report")).ok());
  CollectAllGarbage();
  EXPECT_EQ(storage_->Load(b_)->layers[0], std::string(kManyBytes, 'x'));
}

TEST_P(StorageContractTest, SessionsMayReplaceARecordThatTheyShare) {
  const std::string big(kManyBytes, 'x');
  ASSERT_TRUE(Apply(Create(a_)).ok());
  ASSERT_TRUE(Apply(Create(b_, 2)).ok());
  for (const SessionKey& key : {a_, b_}) ASSERT_TRUE(Apply(Layer(key, 0, big)).ok());
  for (const SessionKey& key : {a_, b_}) {
    const absl::Status status = Apply(Layer(key, 0, std::string(kManyBytes, 'y')));
    EXPECT_TRUE(status.ok()) << status;
  }
  ASSERT_TRUE(Apply(Layer(a_, 0, big)).ok()) << "it may come back";
  CollectAllGarbage();
  EXPECT_EQ(storage_->Load(a_)->layers[0], big);
}

TEST_P(StorageContractTest, AChangeThatFailsLeavesTheOthersOfItsGroupAlone) {
  ASSERT_TRUE(Apply(Create(a_)).ok());
  const SessionChange group[] = {Layer(a_, 0, "one"), Create(a_), Layer(b_, 0, "two"),
                                 Create(b_, 2), Layer(b_, 1, "three")};
  const std::vector<absl::Status> statuses = storage_->Apply(group);
  ASSERT_EQ(statuses.size(), 5u);
  EXPECT_TRUE(statuses[0].ok());
  EXPECT_EQ(statuses[1].code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(statuses[2].code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(statuses[3].ok());
  EXPECT_TRUE(statuses[4].ok());
  EXPECT_THAT(storage_->Load(a_)->layers, ElementsAre(Pair(0, "one")));
  EXPECT_THAT(storage_->Load(b_)->layers, ElementsAre(Pair(1, "three")));
}

TEST_P(StorageContractTest, AnEndedSessionHasAReportAndNothingElse) {
  ASSERT_TRUE(Apply(Create(a_)).ok());
  ASSERT_TRUE(Apply(Layer(a_, 0, "layer")).ok());
  EXPECT_EQ(storage_->LoadReport(a_).status().code(), absl::StatusCode::kNotFound);
  SessionChange end = End(a_, "report");
  end.entry = "last entry";
  ASSERT_TRUE(Apply(end).ok());
  Restart();
  EXPECT_EQ(*storage_->LoadReport(a_), "report");
  EXPECT_EQ(storage_->Load(a_).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Apply(Layer(a_, 0, "layer")).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Apply(End(a_, "another")).code(), absl::StatusCode::kNotFound);
  const auto rows = storage_->List();
  ASSERT_EQ(rows->size(), 1u);
  EXPECT_TRUE((*rows)[0].ended);
  EXPECT_EQ((*rows)[0].entry, "last entry");
  EXPECT_EQ((*rows)[0].request_id, "") << "it is free for another session";
}

TEST_P(StorageContractTest, AnErasedSessionIsGone) {
  ASSERT_TRUE(Apply(Create(a_)).ok());
  ASSERT_TRUE(Apply(Create(b_, 2)).ok());
  ASSERT_TRUE(Apply(End(b_, "report")).ok());
  ASSERT_TRUE(Apply(Erase(a_)).ok());
  ASSERT_TRUE(Apply(Erase(b_)).ok());
  EXPECT_TRUE(Apply(Erase(b_)).ok()) << "nothing to erase";
  Restart();
  EXPECT_THAT(*storage_->List(), IsEmpty());
  EXPECT_TRUE(Apply(Create(a_)).ok());
  EXPECT_THAT(storage_->Load(a_)->layers, IsEmpty());
}

TEST_P(StorageContractTest, ATenantsSessionIsNotAnothers) {
  ASSERT_TRUE(Apply(Create({"one", "x"}, 1)).ok());
  ASSERT_TRUE(Apply(Create({"two", "x"}, 2)).ok());
  ASSERT_TRUE(Apply(Layer({"one", "x"}, 0, "of one")).ok());
  EXPECT_THAT(storage_->Load({"two", "x"})->layers, IsEmpty());
  EXPECT_EQ(storage_->Load({"three", "x"}).status().code(), absl::StatusCode::kNotFound);
}

TEST_P(StorageContractTest, SessionsAreListedByAge) {
  ASSERT_TRUE(Apply(Create(a_, 9)).ok());
  ASSERT_TRUE(Apply(Create(b_, 4)).ok());
  const auto rows = storage_->List();
  ASSERT_EQ(rows->size(), 2u);
  EXPECT_EQ((*rows)[0].key, b_);
  EXPECT_EQ((*rows)[1].key, a_);
}

INSTANTIATE_TEST_SUITE_P(
    Storages, StorageContractTest,
    ::testing::Values(Kind{"Memory", [] { return std::make_unique<MemoryPlace>(); }},
                      Kind{"Disk",
                           [] { return std::make_unique<DiskPlace>(DurabilityLevel::kProcess); }},
                      Kind{"DiskSurvivingPowerLoss",
                           [] { return std::make_unique<DiskPlace>(DurabilityLevel::kPower); }}),
    [](const auto& kind) { return kind.param.name; });

}  // namespace
}  // namespace nni_compression::server
