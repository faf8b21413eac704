// Every operation of a disk storage fails once: what was acknowledged stays, what failed never was.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/storage/disk_storage.h"
#include "tests/testing/faulty_disk.h"

namespace nni_compression::server {
namespace {

namespace fs = std::filesystem;

using ::nni_compression::testing::FaultyDisk;
using ::testing::HasSubstr;

const SessionKey kA = {"tenant", "a"};
const SessionKey kB = {"tenant", "b"};
constexpr size_t kManyBytes = 40 << 10;  // a file of its own

// What is stored of all sessions: their entries, and the records of live ones or the reports of
// those that have ended.
using Content = std::map<SessionKey, std::vector<std::string>>;

SessionChange Create(const SessionKey& key, uint64_t sequence) {
  SessionChange change;
  change.key = key;
  change.create.emplace();
  change.create->row.key = key;
  change.create->row.sequence = sequence;
  change.create->row.entry = "entry";
  change.create->binding = "binding";
  change.global = "global";
  return change;
}

SessionChange Layers(const SessionKey& key, const std::map<int, std::string>& layers) {
  SessionChange change;
  change.key = key;
  change.entry = absl::StrCat("entry of ", layers.begin()->second.substr(0, 1));
  change.global = absl::StrCat("global of ", layers.begin()->second.substr(0, 1));
  for (const auto& [layer, record] : layers)
    change.layers[layer] = [record = record] { return record; };
  return change;
}

SessionChange End(const SessionKey& key) {
  SessionChange change;
  change.key = key;
  change.entry = "last entry";
  change.report = "report";
  return change;
}

SessionChange Erase(const SessionKey& key) {
  SessionChange change;
  change.key = key;
  change.erase = true;
  return change;
}

std::string Big(char letter) { return std::string(kManyBytes, letter); }

// Of records, a name that a failed test can show.
std::string Shown(const std::string& record) {
  const bool big = record.size() == kManyBytes && record == Big(record[0]);
  return big ? absl::StrCat("big ", record.substr(0, 1)) : record;
}

// What a change makes of the content.
void Apply(const SessionChange& change, Content* content) {
  if (change.erase) {
    content->erase(change.key);
    return;
  }
  std::vector<std::string>& session = (*content)[change.key];
  session.resize(5);  // entry, global or report, three layers
  if (change.create) session[0] = change.create->row.entry;
  if (change.entry) session[0] = *change.entry;
  if (change.global) session[1] = *change.global;
  for (const auto& [layer, record] : change.layers) session[2 + layer] = Shown(record());
  if (change.report) session = {session[0], *change.report};
}

absl::StatusOr<Content> Read(Storage& storage) {
  absl::StatusOr<std::vector<CatalogueRow>> rows = storage.List();
  if (!rows.ok()) return rows.status();
  Content content;
  for (const CatalogueRow& row : *rows) {
    std::vector<std::string>& session = content[row.key];
    if (row.ended) {
      absl::StatusOr<std::string> report = storage.LoadReport(row.key);
      if (!report.ok()) return report.status();
      session = {row.entry, *report};
      continue;
    }
    absl::StatusOr<StoredSession> stored = storage.Load(row.key);
    if (!stored.ok()) return stored.status();
    session = {row.entry, stored->global, "", "", ""};
    for (const auto& [layer, record] : stored->layers) session[2 + layer] = Shown(record);
  }
  return content;
}

// One after another; changes of one step are a group.
const std::vector<std::vector<SessionChange>>& Steps() {
  static const auto* const steps = new std::vector<std::vector<SessionChange>>{
      {Create(kA, 1), Create(kB, 2)},
      {Layers(kA, {{0, Big('x')}, {1, Big('y')}, {2, "small"}}), Layers(kB, {{0, "small"}})},
      {Layers(kA, {{0, Big('z')}, {1, Big('x')}})},
      {Layers(kB, {{0, Big('y')}}), Layers(kA, {{0, "tiny"}})},
      {Layers(kA, {{0, Big('z')}})},
      {End(kB), Layers(kA, {{1, Big('y')}})},
      {Erase(kB)},
  };
  return *steps;
}

struct Parameter {
  std::string name;
  int error;
  bool lasting;
  DurabilityLevel durability;
};

class DiskFaultsTest : public ::testing::TestWithParam<Parameter> {
 protected:
  DiskFaultsTest() {
    folder_ = testing::MakeFaultyDiskFolder();
    directory_ = folder_ + "/data";
  }
  ~DiskFaultsTest() override {
    storage_.reset();
    disk_.reset();
    fs::remove_all(folder_);
  }

  // A directory without any trace of the runs before.
  void Begin() {
    storage_.reset();
    disk_.reset();
    fs::remove_all(directory_);
    content_.clear();
    disk_ = std::make_unique<FaultyDisk>(folder_);
  }

  absl::StatusOr<std::unique_ptr<DiskStorage>> Open(const std::string& directory) {
    return DiskStorage::Open({directory, GetParam().durability, absl::ZeroDuration()});
  }

  void ExpectIsFault(const absl::Status& status) {
    const bool lost = GetParam().error == EIO && absl::IsDataLoss(status);  // what is not read
    EXPECT_TRUE(absl::IsResourceExhausted(status) || lost) << status;
  }

  // Opens the storage, again should that fail.
  void OpenInSpite() {
    auto storage = Open(directory_);
    if (!storage.ok()) {
      ExpectIsFault(storage.status());
      EXPECT_THAT(std::string(storage.status().message()), HasSubstr(directory_));
      EXPECT_GT(disk_->failures(), 0);
      disk_->Heal();
      storage = Open(directory_);
    }
    ASSERT_TRUE(storage.ok()) << storage.status();
    storage_ = *std::move(storage);
  }

  // Applies the changes, those that failed again once the disk is well.
  void ApplyInSpite(const std::vector<SessionChange>& changes) {
    const int failures = disk_->failures();
    const std::vector<absl::Status> statuses = storage_->Apply(changes);
    std::vector<SessionChange> failed;
    for (size_t i = 0; i < changes.size(); ++i) {
      if (statuses[i].ok()) {
        Apply(changes[i], &content_);
      } else {
        ExpectIsFault(statuses[i]);
        failed.push_back(changes[i]);
      }
    }
    if (disk_->failures() == failures) {
      EXPECT_TRUE(failed.empty()) << statuses[0];
    }
    if (!GetParam().lasting) {
      EXPECT_LE(failed.size(), 1u) << "one fault costs others something";
    }
    if (failed.empty()) return;
    Content with_failed = content_;
    for (const SessionChange& change : failed) Apply(change, &with_failed);
    ExpectAfterDeath({content_, with_failed});  // as after an answer that did not arrive
    const auto read = Read(*storage_);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(*read, content_) << "what failed has left a trace";
    CollectAllGarbage();  // what the failed change would need, should it come back, is there
    ExpectAfterDeath({content_, with_failed});
    for (const SessionChange& change : failed) {
      const absl::Status status = storage_->Apply({&change, 1})[0];
      EXPECT_TRUE(status.ok()) << status;
      Apply(change, &content_);
    }
  }

  void ReadInSpite() {
    auto read = Read(*storage_);
    if (!read.ok()) {
      ExpectIsFault(read.status());
      disk_->Heal();
      read = Read(*storage_);
    }
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(*read, content_);
  }

  // What the next process would find, were this one killed, and with kPower were the machine off.
  void ExpectAfterDeath(const std::vector<Content>& expected) {
    disk_->Heal();
    fs::create_directory(folder_ + "/copy");
    fs::copy(directory_, folder_ + "/copy/data", fs::copy_options::recursive);
    ExpectInCopy(expected, "after the process died");
    if (GetParam().durability != DurabilityLevel::kPower) return;
    disk_->CopySynced(folder_ + "/copy");
    ExpectInCopy(expected, "after a power failure");
  }

  void ExpectInCopy(const std::vector<Content>& expected, const std::string& when) {
    {
      const auto storage = Open(folder_ + "/copy/data");
      ASSERT_TRUE(storage.ok()) << when << ": " << storage.status();
      const auto read = Read(**storage);
      ASSERT_TRUE(read.ok()) << when << ": " << read.status();
      EXPECT_THAT(expected, ::testing::Contains(*read)) << when;
    }
    fs::remove_all(folder_ + "/copy");
  }

  void CollectAllGarbage() {
    while (storage_->CollectGarbage()) {
    }
  }

  size_t Files() const {
    size_t files = 0;
    for (const auto& file : fs::recursive_directory_iterator(directory_ + "/records")) {
      if (file.is_regular_file()) ++files;
    }
    return files;
  }

  // Records that are files, in all sessions; equal ones are one.
  size_t BigRecords() const {
    std::set<std::string> records;
    for (const auto& [key, session] : content_) {
      for (const std::string& record : session) {
        if (record.rfind("big ", 0) == 0) records.insert(record);
      }
    }
    return records.size();
  }

  // All steps, with whatever fault is armed.
  void RunSteps() {
    OpenInSpite();
    if (HasFatalFailure()) return;
    for (const std::vector<SessionChange>& changes : Steps()) {
      ApplyInSpite(changes);
      ReadInSpite();
      CollectAllGarbage();
      if (HasFatalFailure() || HasNonfatalFailure()) return;
    }
    disk_->Heal();
    CollectAllGarbage();
    EXPECT_EQ(Files(), BigRecords()) << "files that nobody needs are there for good";
    ExpectAfterDeath({content_});
    storage_.reset();
    OpenInSpite();
    ReadInSpite();
  }

  std::string folder_;
  std::string directory_;  // of the storage
  std::unique_ptr<FaultyDisk> disk_;
  std::unique_ptr<DiskStorage> storage_;
  Content content_;  // acknowledged
};

TEST_P(DiskFaultsTest, AtEveryOperation) {
  int failures = 1;
  int at = 1;
  for (; failures > 0; ++at) {
    SCOPED_TRACE(absl::StrCat("operation ", at));
    Begin();
    disk_->Arm({GetParam().error, at, GetParam().lasting});
    RunSteps();
    if (HasFatalFailure() || HasNonfatalFailure()) return;
    failures = disk_->failures();
  }
  EXPECT_GT(at, 50) << "the disk does not see what the storage does";
}

// SQLite moves its log into the catalogue when the log has a thousand pages.
TEST_P(DiskFaultsTest, AtEveryOperationOfACheckpoint) {
  const std::string full_log = folder_ + "/full-log";
  Begin();
  OpenInSpite();
  ApplyInSpite({Create(kA, 1), Create(kB, 2)});
  const std::string log = directory_ + "/catalogue.db-wal";
  const auto before_checkpoint = [&] { return fs::file_size(log) > 995 * 4120; };
  for (int i = 0; !before_checkpoint(); ++i) ApplyInSpite({Layers(kA, {{0, absl::StrCat(i)}})});
  const Content content = content_;
  fs::copy(directory_, full_log, fs::copy_options::recursive);

  int failures = 1;
  for (int at = 1; failures > 0; ++at) {
    SCOPED_TRACE(absl::StrCat("operation ", at));
    Begin();
    fs::copy(full_log, directory_, fs::copy_options::recursive);
    disk_->SyncAll();
    content_ = content;
    OpenInSpite();
    disk_->Arm({GetParam().error, at, GetParam().lasting});
    for (int i = 0; i < 5; ++i) ApplyInSpite({Layers(kB, {{0, absl::StrCat(i)}})});
    failures = disk_->failures();
    disk_->Heal();
    ReadInSpite();
    EXPECT_GT(fs::file_size(directory_ + "/catalogue.db"),
              fs::file_size(full_log + "/catalogue.db"));
    storage_.reset();
    OpenInSpite();
    ReadInSpite();
    if (HasFatalFailure() || HasNonfatalFailure()) return;
  }
}

TEST_P(DiskFaultsTest, AtTheStart) {
  Begin();
  OpenInSpite();
  for (const std::vector<SessionChange>& changes : Steps()) ApplyInSpite(changes);
  storage_.reset();
  int failures = 1;
  for (int at = 1; failures > 0; ++at) {
    SCOPED_TRACE(absl::StrCat("operation ", at));
    disk_->Arm({GetParam().error, at, GetParam().lasting});
    OpenInSpite();
    if (HasFatalFailure()) return;
    ReadInSpite();
    failures = disk_->failures();
    disk_->Heal();
    ApplyInSpite({Layers(kA, {{0, absl::StrCat(at)}})});
    if (HasFatalFailure() || HasNonfatalFailure()) return;
    storage_.reset();
  }
}

// Every error meets both levels, and both spans of time.
INSTANTIATE_TEST_SUITE_P(
    Disks, DiskFaultsTest,
    ::testing::Values(Parameter{"InputOutputErrorOnceWithPower", EIO, false,
                                DurabilityLevel::kPower},
                      Parameter{"InputOutputErrorForLong", EIO, true, DurabilityLevel::kProcess},
                      Parameter{"FullDiskOnce", ENOSPC, false, DurabilityLevel::kProcess},
                      Parameter{"FullDiskForLongWithPower", ENOSPC, true, DurabilityLevel::kPower},
                      Parameter{"ReadOnlyDiskOnceWithPower", EROFS, false, DurabilityLevel::kPower},
                      Parameter{"ReadOnlyDiskForLong", EROFS, true, DurabilityLevel::kProcess}),
    [](const auto& parameter) { return parameter.param.name; });

// A directory that may be read only: the server says so, and does not start.
TEST(ReadOnlyDiskTest, IsRefusedAtTheStart) {
  const std::string folder = testing::MakeFaultyDiskFolder();
  const DiskStorageOptions options = {folder + "/data", DurabilityLevel::kProcess, {}};
  ASSERT_TRUE(DiskStorage::Open(options).ok());
  {
    FaultyDisk disk(options.directory);
    disk.Arm({EROFS, 1, /*lasting=*/true});
    const auto refused = DiskStorage::Open(options);
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(refused.status().message()),
                HasSubstr(options.directory + "/lock': Read-only file system"));
  }
  EXPECT_TRUE(DiskStorage::Open(options).ok());
  fs::remove_all(folder);
}

}  // namespace
}  // namespace nni_compression::server
