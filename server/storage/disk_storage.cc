#include "server/storage/disk_storage.h"

#include <optional>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "server/base/mutex.h"
#include "server/disk/layout.h"
#include "server/storage/data_directory.h"
#include "server/storage/disk_writer.h"
#include "server/storage/row_checksums.h"

namespace nni_compression::server {

// The reading side: its own connection, which sees committed data and waits for no writer.
// Thread-safe.
class DiskStorage::Reader {
 public:
  Reader(Database database, const RecordFiles& files)
      : database_(std::move(database)),
        files_(files),
        list_(database_, absl::StrCat(kSelectRow, " ORDER BY sequence")),
        find_(database_, absl::StrCat(kSelectRow, " WHERE tenant = ? AND id = ?")),
        records_(database_, "SELECT part, bytes, digest, checksum FROM records WHERE session = ?") {
  }

  absl::StatusOr<std::vector<CatalogueRow>> List() {
    MutexLock lock(&mutex_);
    std::vector<CatalogueRow> rows;
    list_.With();
    while (true) {
      const absl::StatusOr<bool> more = list_.Next();
      if (!more.ok()) return more.status();
      if (!*more) return rows;
      rows.push_back(RowOf(list_));
    }
  }

  struct Content {
    std::string entry;
    std::map<int, std::string> records;  // by part
  };

  // A session's records in this state, those in files included. The files exist as long as the
  // session does not change.
  absl::StatusOr<Content> Read(const SessionKey& key, bool ended) {
    Content content;
    std::map<int, std::string>& records = content.records;
    std::map<int, std::string> digests;
    {
      MutexLock lock(&mutex_);
      const absl::StatusOr<bool> found = find_.With(key.first, key.second).Next();
      if (!found.ok()) return found.status();
      if (!*found) return NotStored(key);
      // Until Reset, all reads see one snapshot.
      const auto end_of_reading = absl::MakeCleanup([this]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
        records_.Reset();
        find_.Reset();
      });
      CatalogueRow row = RowOf(find_);
      const int64_t number = find_.Integer(kNumberColumn);
      const std::optional<RecordSet> expected = RecordsOf(find_);
      RecordSet there;
      if (row.damaged) return absl::DataLossError("the catalogue row is damaged");
      if (row.ended != ended) return NotStored(key);
      content.entry = std::move(row.entry);
      records_.With(number);
      while (true) {
        const absl::StatusOr<bool> more = records_.Next();
        if (!more.ok()) return more.status();
        if (!*more) break;
        const auto part = static_cast<int>(records_.Integer(0));
        auto bytes = records_.OptionalBytes(1);
        auto digest = records_.OptionalBytes(2);
        const int64_t checksum = ChecksumOf(number, part, bytes, digest);
        there.Change(part, checksum, 1);
        if (!records_.IsNull(3) && records_.Integer(3) != checksum) {
          return absl::DataLossError(absl::StrCat(layout::PartName(part), " is damaged"));
        }
        if (bytes) {
          records[part] = *std::move(bytes);
        } else {
          digests[part] = std::move(digest).value_or("");
        }
      }
      if (expected && !(there == *expected)) {
        return absl::DataLossError(DifferenceFrom(*expected, there));
      }
    }
    for (const auto& [part, digest] : digests) {
      absl::StatusOr<std::string> bytes = files_.Read(digest);
      if (absl::IsNotFound(bytes.status())) return absl::DataLossError(bytes.status().message());
      if (!bytes.ok()) return bytes.status();
      records[part] = *std::move(bytes);
    }
    return content;
  }

 private:
  static constexpr char kSelectRow[] =
      "SELECT tenant, id, sequence, ended, lease_nanoseconds, request_id, fingerprint, entry, "
      "checksum, number, record_count, record_parts, record_checksums FROM sessions";
  static constexpr int kChecksumColumn = 8;
  static constexpr int kNumberColumn = 9;

  static std::optional<RecordSet> RecordsOf(const Statement& selected) {
    if (selected.IsNull(kChecksumColumn) || selected.IsNull(10)) return std::nullopt;
    return RecordSet{selected.Integer(10), selected.Integer(11), selected.Integer(12)};
  }

  static CatalogueRow RowOf(const Statement& selected) {
    CatalogueRow row = {{selected.Bytes(0), selected.Bytes(1)},
                        static_cast<uint64_t>(selected.Integer(2)),
                        selected.Integer(3) != 0,
                        absl::Nanoseconds(selected.Integer(4)),
                        selected.Bytes(5),
                        selected.Bytes(6),
                        selected.Bytes(7)};
    row.damaged = !selected.IsNull(kChecksumColumn) &&
                  selected.Integer(kChecksumColumn) != ChecksumOf(row, RecordsOf(selected));
    return row;
  }

  Mutex mutex_;
  Database database_;
  const RecordFiles& files_;
  Statement list_ ABSL_GUARDED_BY(mutex_);
  Statement find_ ABSL_GUARDED_BY(mutex_);
  Statement records_ ABSL_GUARDED_BY(mutex_);
};

namespace {

// Checked here too, since rows of version 1 do not list their records.
absl::Status Missing(int part) {
  return absl::DataLossError(absl::StrCat(layout::PartName(part), " is missing"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<DiskStorage>> DiskStorage::Open(const DiskStorageOptions& options) {
  absl::StatusOr<DataDirectory> directory =
      DataDirectory::Open(options.directory, options.lock_wait);
  if (!directory.ok()) return directory.status();
  absl::StatusOr<std::unique_ptr<Writer>> writer =
      Writer::Open(options.directory, options.durability);
  if (!writer.ok()) return writer.status();
  absl::StatusOr<Database> database =
      Database::Open(layout::PathIn(options.directory, layout::kCatalogue));
  if (!database.ok()) return database.status();
  auto reader = std::make_unique<Reader>(*std::move(database), (*writer)->files());
  return std::unique_ptr<DiskStorage>(
      new DiskStorage(*std::move(directory), *std::move(writer), std::move(reader)));
}

DiskStorage::DiskStorage(DataDirectory directory, std::unique_ptr<Writer> writer,
                         std::unique_ptr<Reader> reader)
    : directory_(std::move(directory)), writer_(std::move(writer)), reader_(std::move(reader)) {}
DiskStorage::~DiskStorage() = default;

std::vector<absl::Status> DiskStorage::Apply(absl::Span<const SessionChange> changes) {
  return writer_->Apply(changes);
}

absl::StatusOr<std::vector<CatalogueRow>> DiskStorage::List() { return reader_->List(); }

absl::StatusOr<StoredSession> DiskStorage::Load(const SessionKey& key) {
  auto content = reader_->Read(key, /*ended=*/false);
  if (!content.ok()) return content.status();
  if (content->records.count(layout::kBinding) == 0) return Missing(layout::kBinding);
  StoredSession session;
  session.entry = std::move(content->entry);
  for (auto& [part, bytes] : content->records) {
    if (part == layout::kBinding) {
      session.binding = std::move(bytes);
    } else if (part == layout::kGlobal) {
      session.global = std::move(bytes);
    } else if (part >= 0) {
      session.layers[part] = std::move(bytes);
    }
  }
  return session;
}

absl::StatusOr<std::string> DiskStorage::LoadReport(const SessionKey& key) {
  auto content = reader_->Read(key, /*ended=*/true);
  if (!content.ok()) return content.status();
  const auto report = content->records.find(layout::kReport);
  if (report == content->records.end()) return Missing(layout::kReport);
  return std::move(report->second);
}

bool DiskStorage::CollectGarbage() { return writer_->CollectGarbage(); }

}  // namespace nni_compression::server
