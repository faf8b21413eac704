// What only a directory can suffer: damage, a full disk, a second server, an older version.
#include "server/storage/disk_storage.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/shm/file_descriptor.h"
#include "server/storage/data_directory.h"
#include "server/storage/sqlite.h"

namespace nni_compression::server {
namespace {

using ::testing::HasSubstr;

const SessionKey kA = {"tenant", "a"};
const SessionKey kB = {"tenant", "b"};
constexpr size_t kBigLayer = 1 << 20;

// Lets no file grow above `bytes` while it lives, as a full disk would not.
class FullDisk {
 public:
  explicit FullDisk(rlim_t bytes) {
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit = {bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FullDisk() { setrlimit(RLIMIT_FSIZE, &before_); }

 private:
  rlimit before_ = {};
};

class DiskStorageTest : public ::testing::Test {
 protected:
  DiskStorageTest() {
    std::string pattern = ::testing::TempDir() + "/storageXXXXXX";
    directory_ = mkdtemp(pattern.data());
    Open();
  }
  ~DiskStorageTest() override {
    storage_.reset();
    std::filesystem::remove_all(directory_);
  }

  void Open() {
    storage_.reset();
    auto storage = Try();
    ASSERT_TRUE(storage.ok()) << storage.status();
    storage_ = *std::move(storage);
  }

  absl::StatusOr<std::unique_ptr<DiskStorage>> Try(absl::Duration wait = absl::ZeroDuration()) {
    return DiskStorage::Open({directory_, DurabilityLevel::kProcess, wait});
  }

  absl::Status Apply(const SessionChange& change) { return storage_->Apply({&change, 1})[0]; }

  absl::Status Create(const SessionKey& key) {
    SessionChange change;
    change.key = key;
    change.create.emplace();
    change.global = "global";
    return Apply(change);
  }

  absl::Status PutLayer(const SessionKey& key, int layer, const std::string& record) {
    SessionChange change;
    change.key = key;
    change.layers[layer] = [record] { return record; };
    return Apply(change);
  }

  void CollectAllGarbage() {
    while (storage_->CollectGarbage()) {
    }
  }

  std::vector<std::string> RecordFiles() const {
    std::vector<std::string> files;
    for (const auto& file :
         std::filesystem::recursive_directory_iterator(directory_ + "/records")) {
      if (file.is_regular_file()) files.push_back(file.path());
    }
    return files;
  }

  std::string directory_;
  std::unique_ptr<DiskStorage> storage_;
};

TEST_F(DiskStorageTest, ADamagedFileCostsOnlyTheSessionThatNeedsIt) {
  for (const SessionKey& key : {kA, kB}) {
    ASSERT_TRUE(Create(key).ok());
    ASSERT_TRUE(PutLayer(key, 0, key.second + std::string(kBigLayer, 'x')).ok());
  }
  for (const std::string& path : RecordFiles()) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    if (file.get() != 'a') continue;
    file.seekp(1000);
    file.put('?');
  }
  const auto damaged = storage_->Load(kA);
  EXPECT_EQ(damaged.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(damaged.status().message(), HasSubstr(directory_ + "/records/"));
  EXPECT_TRUE(storage_->Load(kB).ok());
  ASSERT_TRUE(PutLayer(kA, 0, "a" + std::string(kBigLayer, 'x')).ok());
  EXPECT_TRUE(storage_->Load(kA).ok()) << "written again, it is whole again";
}

TEST_F(DiskStorageTest, AMissingFileIsLostData) {
  ASSERT_TRUE(Create(kA).ok());
  ASSERT_TRUE(PutLayer(kA, 0, std::string(kBigLayer, 'x')).ok());
  ASSERT_EQ(RecordFiles().size(), 1u);
  std::filesystem::remove(RecordFiles()[0]);
  EXPECT_EQ(storage_->Load(kA).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(DiskStorageTest, ADamagedCatalogueIsRefusedAtTheStart) {
  storage_.reset();
  std::ofstream(directory_ + "/catalogue.db") << std::string(100000, '?');
  EXPECT_EQ(Try().status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(DiskStorageTest, OnAFullDiskAChangeFailsAndLeavesNoTrace) {
  ASSERT_TRUE(Create(kA).ok());
  ASSERT_TRUE(PutLayer(kA, 0, "before").ok());
  {
    const FullDisk full(kBigLayer / 2);
    EXPECT_EQ(PutLayer(kA, 0, std::string(kBigLayer, 'x')).code(),
              absl::StatusCode::kResourceExhausted);
    EXPECT_TRUE(PutLayer(kA, 1, "small").ok()) << "there is room for this";
  }
  {
    const FullDisk full(0);
    EXPECT_EQ(PutLayer(kA, 0, "small").code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(Create(kB).code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(storage_->Load(kA)->layers[0], "before");
  }
  Open();
  EXPECT_EQ(storage_->Load(kA)->layers[0], "before");
  EXPECT_EQ(storage_->Load(kA)->layers[1], "small");
  EXPECT_EQ(storage_->Load(kB).status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(PutLayer(kA, 0, "after").ok());
  EXPECT_TRUE(RecordFiles().empty());
}

TEST_F(DiskStorageTest, OneLargeChangeThatFindsNoRoomDoesNotFailItsGroup) {
  ASSERT_TRUE(Create(kA).ok());
  SessionChange large;
  large.key = kA;
  large.layers[0] = [] { return std::string(kBigLayer, 'x'); };
  SessionChange small;
  small.key = kA;
  small.layers[1] = [] { return std::string("small"); };
  const FullDisk full(kBigLayer / 2);
  const std::vector<SessionChange> group = {large, small};
  const std::vector<absl::Status> statuses = storage_->Apply(group);
  EXPECT_EQ(statuses[0].code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(statuses[1].ok()) << statuses[1];
}

TEST_F(DiskStorageTest, FilesThatNoSessionNeedsAreRemoved) {
  ASSERT_TRUE(Create(kA).ok());
  ASSERT_TRUE(PutLayer(kA, 0, std::string(kBigLayer, 'x')).ok());
  ASSERT_TRUE(PutLayer(kA, 0, std::string(kBigLayer, 'y')).ok());
  EXPECT_EQ(RecordFiles().size(), 2u);
  CollectAllGarbage();
  EXPECT_EQ(RecordFiles().size(), 1u);
  SessionChange end;
  end.key = kA;
  end.report = "report";
  ASSERT_TRUE(Apply(end).ok());
  CollectAllGarbage();
  EXPECT_TRUE(RecordFiles().empty());
}

TEST_F(DiskStorageTest, FilesOfAProcessThatDiedTooEarlyAreRemoved) {
  const std::string digest(62, 'a');
  std::filesystem::create_directory(directory_ + "/records/0f");
  std::ofstream(directory_ + "/records/0f/" + digest) << "left over";
  std::ofstream(directory_ + "/records/unfinished") << "half";
  std::ofstream(directory_ + "/records/0f/notes.txt") << "somebody else's";
  Open();
  CollectAllGarbage();
  ASSERT_EQ(RecordFiles().size(), 1u);
  EXPECT_THAT(RecordFiles()[0], HasSubstr("notes.txt"));
}

TEST_F(DiskStorageTest, NoFileIsRemovedWhileABackupHoldsThem) {
  ASSERT_TRUE(Create(kA).ok());
  ASSERT_TRUE(PutLayer(kA, 0, std::string(kBigLayer, 'x')).ok());
  ASSERT_TRUE(PutLayer(kA, 0, "small").ok());
  {
    const FileDescriptor keep(
        open((directory_ + "/keep-files").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    ASSERT_EQ(flock(keep.get(), LOCK_SH), 0);
    CollectAllGarbage();
    EXPECT_EQ(RecordFiles().size(), 1u);
  }
  CollectAllGarbage();
  EXPECT_TRUE(RecordFiles().empty());
}

TEST_F(DiskStorageTest, ASecondServerIsRefusedOrWaits) {
  const auto second = Try();
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(second.status().message(), HasSubstr("in use by another server"));
  EXPECT_FALSE(Try(absl::Milliseconds(100)).ok()) << "it waits no longer than it was told";
  storage_.reset();
  EXPECT_TRUE(Try(absl::Seconds(30)).ok());
}

TEST_F(DiskStorageTest, WhatANewerServerWroteIsRefused) {
  storage_.reset();
  auto database = Database::Open(directory_ + "/catalogue.db");
  ASSERT_TRUE(database->Execute("PRAGMA user_version = 2").ok());
  const auto opened = Try();
  EXPECT_EQ(opened.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(opened.status().message(), HasSubstr("format version 2"));
}

TEST(DataDirectoryTest, NetworkFileSystemsAreRefused) {
  EXPECT_TRUE(CheckFileSystem("/data", 0xEF53).ok()) << "ext4";
  EXPECT_TRUE(CheckFileSystem("/data", 0x01021994).ok()) << "tmpfs";
  const absl::Status nfs = CheckFileSystem("/data", 0x6969);
  EXPECT_EQ(nfs.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(nfs.message(), HasSubstr("NFS"));
  EXPECT_FALSE(CheckFileSystem("/data", static_cast<int32_t>(0xFF534D42)).ok())
      << "CIFS, sign-extended";
}

}  // namespace
}  // namespace nni_compression::server
