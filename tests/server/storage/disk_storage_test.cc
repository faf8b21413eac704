// What only a directory can suffer: damage, a full disk, a second server, an older version.
#include "server/storage/disk_storage.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "server/platform/file_descriptor.h"
#include "server/storage/data_directory.h"
#include "server/storage/row_checksums.h"
#include "server/storage/sqlite.h"
#include "server/storage/write_ahead_log.h"

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

  std::vector<std::string> Files(const std::string& folder) const {
    std::vector<std::string> files;
    for (const auto& file : std::filesystem::recursive_directory_iterator(directory_ + folder)) {
      if (file.is_regular_file()) files.push_back(file.path());
    }
    return files;
  }

  std::vector<std::string> RecordFiles() const { return Files("/records"); }

  // Changes the catalogue behind the storage's back, as damage does.
  void ExecuteOffline(const std::string& sql) {
    storage_.reset();
    auto database = Database::Open(directory_ + "/catalogue.db");
    ASSERT_TRUE(database.ok()) << database.status();
    const absl::Status status = database->Execute(sql);
    ASSERT_TRUE(status.ok()) << status;
    database = absl::CancelledError();
    Open();
  }

  static void FlipByte(const std::string& path, int64_t at) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(at);
    const int byte = file.get();
    file.seekp(at);
    file.put(static_cast<char>(byte ^ 0x55));
  }

  // Goes on with what is there now, as after kill -9, and what `damage` makes of it.
  void Crash(const std::function<void(const std::string& copy)>& damage) {
    const std::string copy = directory_ + ".crashed";
    std::filesystem::copy(directory_, copy, std::filesystem::copy_options::recursive);
    damage(copy);
    storage_.reset();
    std::filesystem::remove_all(directory_);
    std::filesystem::rename(copy, directory_);
    Open();
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

TEST_F(DiskStorageTest, ADamagedRowIsListedAsSuchAndNoOther) {
  ASSERT_TRUE(Create(kA).ok());
  ASSERT_TRUE(Create(kB).ok());
  for (const std::string column :
       {"sequence = 77", "ended = 1", "lease_nanoseconds = -1", "request_id = x'61'",
        "fingerprint = x'62'", "entry = x'63'", "tenant = x'64'", "record_count = 7",
        "record_count = NULL", "record_parts = 7", "record_checksums = 7"}) {
    ExecuteOffline("UPDATE sessions SET " + column + " WHERE id = CAST('a' AS BLOB)");
    const auto rows = storage_->List();
    ASSERT_TRUE(rows.ok()) << rows.status();
    ASSERT_EQ(rows->size(), 2u);
    for (const CatalogueRow& row : *rows) {
      EXPECT_EQ(row.damaged, row.key.second == "a") << column;
      EXPECT_EQ(storage_->Load(row.key).status().code(),
                row.key.second == "a" ? absl::StatusCode::kDataLoss : absl::StatusCode::kOk)
          << column;
    }
    SessionChange erase;
    erase.erase = true;
    for (const std::string tenant : {"tenant", "d"}) {
      erase.key = {tenant, "a"};
      ASSERT_TRUE(Apply(erase).ok());
    }
    ASSERT_TRUE(Create(kA).ok());
  }
}

TEST_F(DiskStorageTest, ADamagedRecordIsLostDataOfItsSession) {
  ASSERT_TRUE(Create(kA).ok());
  ASSERT_TRUE(Create(kB).ok());
  ASSERT_TRUE(PutLayer(kA, 3, "small").ok());
  ExecuteOffline("UPDATE records SET bytes = CAST('smell' AS BLOB) WHERE part = 3");
  EXPECT_EQ(storage_->Load(kA).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(storage_->Load(kA).status().message(), HasSubstr("layer 3"));
  EXPECT_TRUE(storage_->Load(kB).ok());
  ASSERT_TRUE(PutLayer(kA, 3, "small").ok());
  EXPECT_TRUE(storage_->Load(kA).ok()) << "written again, it is whole again";

  SessionChange end;
  end.key = kA;
  end.report = "report";
  ASSERT_TRUE(Apply(end).ok());
  EXPECT_EQ(*storage_->LoadReport(kA), "report");
  ExecuteOffline("UPDATE records SET bytes = CAST('retort' AS BLOB) WHERE part = -3");
  EXPECT_EQ(storage_->LoadReport(kA).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(DiskStorageTest, AMissingRecordIsLostDataOfItsSession) {
  const std::string of_a =
      " WHERE session = (SELECT number FROM sessions WHERE id = CAST('a' AS BLOB))";
  for (const auto& [removed, message] :
       std::map<std::string, std::string>{{" AND part = 3", "the record of layer 3 is missing"},
                                          {" AND part = 0", "the record of layer 0 is missing"},
                                          {" AND part = -1", "the binding is missing"},
                                          {" AND part = -2", "the global record is missing"},
                                          {" AND part >= 0", "2 of its 4 records are missing"},
                                          {"", "4 of its 4 records are missing"}}) {
    for (const SessionKey& key : {kA, kB}) {
      ASSERT_TRUE(Create(key).ok());
      ASSERT_TRUE(PutLayer(key, 0, "first").ok());
      ASSERT_TRUE(PutLayer(key, 0, "small").ok());
      ASSERT_TRUE(PutLayer(key, 3, std::string(kBigLayer, 'x')).ok());
    }
    Open();
    EXPECT_TRUE(storage_->Load(kA).ok()) << storage_->Load(kA).status();
    ExecuteOffline("DELETE FROM records" + of_a + removed);
    EXPECT_EQ(storage_->Load(kA).status().code(), absl::StatusCode::kDataLoss) << removed;
    EXPECT_EQ(storage_->Load(kA).status().message(), message);
    EXPECT_TRUE(storage_->Load(kB).ok());
    for (const SessionKey& key : {kA, kB}) {
      SessionChange erase;
      erase.key = key;
      erase.erase = true;
      ASSERT_TRUE(Apply(erase).ok());
    }
  }
}

TEST_F(DiskStorageTest, AMissingReportIsLostData) {
  ASSERT_TRUE(Create(kA).ok());
  ASSERT_TRUE(PutLayer(kA, 0, "small").ok());
  SessionChange end;
  end.key = kA;
  end.report = "report";
  ASSERT_TRUE(Apply(end).ok());
  Open();
  EXPECT_EQ(*storage_->LoadReport(kA), "report");
  for (const std::string of : {"", "UPDATE sessions SET checksum = NULL;"}) {
    ExecuteOffline(of + "DELETE FROM records");
    EXPECT_EQ(storage_->LoadReport(kA).status().code(), absl::StatusCode::kDataLoss);
    EXPECT_EQ(storage_->LoadReport(kA).status().message(), "the report is missing");
  }
}

TEST_F(DiskStorageTest, RecordsOfAnotherTimeAreLostData) {
  ASSERT_TRUE(Create(kA).ok());
  for (int layer = 0; layer < 3; ++layer) ASSERT_TRUE(PutLayer(kA, layer, "step 1").ok());
  ExecuteOffline("CREATE TABLE older AS SELECT * FROM records");
  for (int layer = 0; layer < 3; ++layer) ASSERT_TRUE(PutLayer(kA, layer, "step 2").ok());
  ExecuteOffline("CREATE TABLE newer AS SELECT * FROM records");
  // The bytes of all have changed alike, which may not cancel out.
  for (const std::string parts : {"part = 0", "part IN (0, 1)", "part >= 0"}) {
    ExecuteOffline("INSERT OR REPLACE INTO records SELECT * FROM older WHERE " + parts);
    EXPECT_EQ(storage_->Load(kA).status().code(), absl::StatusCode::kDataLoss) << parts;
    EXPECT_THAT(storage_->Load(kA).status().message(), HasSubstr("not the last one written"));
    ExecuteOffline("INSERT OR REPLACE INTO records SELECT * FROM newer");
    EXPECT_EQ(storage_->Load(kA)->layers[0], "step 2");
  }
  ExecuteOffline(
      "INSERT INTO records (session, part, bytes) SELECT session, 7, bytes FROM newer "
      "WHERE part = 0");
  EXPECT_EQ(storage_->Load(kA).status().message(), "1 unexpected records exist");
  ExecuteOffline("DELETE FROM records WHERE part = 0");
  EXPECT_EQ(storage_->Load(kA).status().message(), "its records are not the expected ones");
}

TEST_F(DiskStorageTest, ASessionHasNothingOfOneWhoseRowIsLost) {
  ASSERT_TRUE(Create(kA).ok());
  ASSERT_TRUE(PutLayer(kA, 0, "old").ok());
  ASSERT_TRUE(PutLayer(kA, 1, "old").ok());
  ExecuteOffline("DELETE FROM sessions");
  ASSERT_TRUE(Create(kB).ok());
  ASSERT_TRUE(PutLayer(kB, 0, "new").ok());
  Open();
  ASSERT_TRUE(storage_->Load(kB).ok()) << storage_->Load(kB).status();
  EXPECT_THAT(storage_->Load(kB)->layers, ::testing::ElementsAre(::testing::Pair(0, "new")));
}

TEST_F(DiskStorageTest, WhereTheCatalogueDoesNotSayWhichRecordsThereAreItIsRead) {
  ASSERT_TRUE(Create(kA).ok());
  ASSERT_TRUE(PutLayer(kA, 0, "small").ok());
  const int64_t checksum = ChecksumOf(storage_->List()->at(0), std::nullopt);
  ExecuteOffline(
      "ALTER TABLE sessions DROP COLUMN record_count; ALTER TABLE sessions DROP COLUMN "
      "record_parts; ALTER TABLE sessions DROP COLUMN record_checksums; UPDATE sessions SET "
      "checksum = " +
      std::to_string(checksum));
  for (const std::string record : {"small", "other"}) {
    EXPECT_FALSE(storage_->List()->at(0).damaged);
    ASSERT_TRUE(storage_->Load(kA).ok()) << storage_->Load(kA).status();
    EXPECT_EQ(storage_->Load(kA)->layers[0], record);
    ASSERT_TRUE(PutLayer(kA, 0, "other").ok());
    ASSERT_TRUE(PutLayer(kA, 1, "new").ok());
    Open();
  }
  SessionChange end;
  end.key = kA;
  end.report = "report";
  ASSERT_TRUE(Apply(end).ok());
  Open();
  EXPECT_EQ(*storage_->LoadReport(kA), "report");
  ASSERT_TRUE(Create(kB).ok());
  ASSERT_TRUE(PutLayer(kB, 0, "small").ok());
  ExecuteOffline("DELETE FROM records WHERE part = 0");
  EXPECT_EQ(storage_->Load(kB).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(DiskStorageTest, RowsOfTheFirstVersionHaveNoChecksumsAndAreRead) {
  ASSERT_TRUE(Create(kA).ok());
  ASSERT_TRUE(PutLayer(kA, 0, "small").ok());
  ExecuteOffline(
      "ALTER TABLE sessions DROP COLUMN checksum; ALTER TABLE records DROP COLUMN checksum; "
      "PRAGMA user_version = 1");
  EXPECT_FALSE(storage_->List()->at(0).damaged);
  EXPECT_EQ(storage_->Load(kA)->layers[0], "small");
  ASSERT_TRUE(PutLayer(kA, 0, "other").ok());
  Open();
  EXPECT_EQ(storage_->Load(kA)->layers[0], "other");
}

TEST_F(DiskStorageTest, WhatADamagedLogHadNamedIsSetAside) {
  ASSERT_TRUE(Create(kA).ok());
  ASSERT_TRUE(PutLayer(kA, 0, std::string(kBigLayer, 'x')).ok());
  ASSERT_TRUE(PutLayer(kA, 0, "small").ok());
  ASSERT_TRUE(PutLayer(kA, 0, std::string(kBigLayer, 'y')).ok());
  const uintmax_t log_bytes = std::filesystem::file_size(directory_ + "/catalogue.db-wal");
  Crash([&](const std::string& copy) { FlipByte(copy + "/catalogue.db-wal", log_bytes - 100); });
  EXPECT_EQ(storage_->Load(kA)->layers[0], "small") << "the last change is lost";
  CollectAllGarbage();
  EXPECT_THAT(RecordFiles(), ::testing::IsEmpty());
  EXPECT_EQ(Files("/lost").size(), 2u)
      << "one was garbage, which the lost rows may have used again";
  Open();
  CollectAllGarbage();
  EXPECT_EQ(Files("/lost").size(), 2u);
}

TEST_F(DiskStorageTest, AfterACrashFilesThatNothingNamesAreRemoved) {
  ASSERT_TRUE(Create(kA).ok());
  ASSERT_TRUE(PutLayer(kA, 0, std::string(kBigLayer, 'x')).ok());
  Crash([](const std::string& copy) {
    std::filesystem::create_directories(copy + "/records/0f");
    std::ofstream(copy + "/records/0f/" + std::string(62, 'a')) << "left over";
  });
  CollectAllGarbage();
  EXPECT_EQ(RecordFiles().size(), 1u);
  EXPECT_FALSE(std::filesystem::exists(directory_ + "/lost"));
}

TEST_F(DiskStorageTest, WhereverTheLogIsDamagedNothingIsLostWithoutAWord) {
  ASSERT_TRUE(Create(kA).ok());
  ASSERT_TRUE(PutLayer(kA, 0, "a").ok());
  const std::string log = directory_ + "/catalogue.db-wal";
  const auto bytes = static_cast<int64_t>(std::filesystem::file_size(log));
  ASSERT_EQ(LostTransactions(log), 0);
  const std::string copy = directory_ + "/copy";
  constexpr int64_t kFrameBytes = 24 + 4096;
  const int64_t last_frame = bytes - kFrameBytes;
  std::set<int64_t> places;
  for (int64_t at = 0; at < 100; ++at) places.insert({at, last_frame + at});
  for (int64_t at = 0; at < bytes; at += 509) places.insert(at);
  // Of the last frame, these say that it belongs to this turn of the log.
  for (int64_t at = 8; at < 16; ++at) places.erase(last_frame + at);
  for (const int64_t at : places) {
    std::filesystem::copy_file(log, copy, std::filesystem::copy_options::overwrite_existing);
    FlipByte(copy, at);
    EXPECT_GT(LostTransactions(copy), 0) << "byte " << at << " of " << bytes;
  }
  EXPECT_EQ(LostTransactions(directory_ + "/missing"), 0);
  std::ofstream(copy, std::ios::trunc) << "";
  EXPECT_EQ(LostTransactions(copy), 0);
}

TEST_F(DiskStorageTest, ItsFilesArePrivate) {
  storage_.reset();
  std::filesystem::permissions(directory_ + "/catalogue.db", std::filesystem::perms(0644));
  const mode_t before = umask(0);
  Open();
  umask(before);
  ASSERT_TRUE(Create(kA).ok());
  ASSERT_TRUE(PutLayer(kA, 0, std::string(kBigLayer, 'x')).ok());
  for (const auto& file : std::filesystem::recursive_directory_iterator(directory_)) {
    EXPECT_EQ(static_cast<int>(file.status().permissions()) & 077, 0) << file.path();
  }
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

TEST_F(DiskStorageTest, TheFileThatBackupsLockIsTheServersFromTheStart) {
  const std::string keep = directory_ + "/keep-files";
  ASSERT_TRUE(std::filesystem::exists(keep));
  // Nobody is led to another file by it.
  std::filesystem::remove(keep);
  std::filesystem::create_symlink(directory_ + "/elsewhere", keep);
  Open();
  ASSERT_TRUE(Create(kA).ok());
  ASSERT_TRUE(PutLayer(kA, 0, std::string(kBigLayer, 'x')).ok());
  ASSERT_TRUE(PutLayer(kA, 0, "small").ok());
  CollectAllGarbage();
  EXPECT_FALSE(std::filesystem::exists(directory_ + "/elsewhere"));
  EXPECT_EQ(RecordFiles().size(), 1u) << "a backup may be running";
  std::filesystem::remove(keep);
  CollectAllGarbage();
  EXPECT_THAT(RecordFiles(), ::testing::IsEmpty());
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
  ASSERT_TRUE(database->Execute("PRAGMA user_version = 3").ok());
  const auto opened = Try();
  EXPECT_EQ(opened.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(opened.status().message(), HasSubstr("format version 3"));
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
