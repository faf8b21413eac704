#include "server/storage/disk_writer.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/log.h"
#include "server/disk/layout.h"
#include "server/platform/sha256.h"
#include "server/storage/data_directory.h"
#include "server/storage/write_ahead_log.h"

namespace nni_compression::server {
namespace {

// Files removed per step.
constexpr int kGarbagePerRound = 64;
constexpr int kAllGarbage = -1;  // SQLite's LIMIT -1: no limit

constexpr mode_t kPrivate = 0600;

std::string SetVersion() { return absl::StrCat("PRAGMA user_version = ", layout::kVersion); }

absl::Status SetUp(Database& database, DurabilityLevel durability) {
  const absl::StatusOr<int64_t> version = database.Number("PRAGMA user_version");
  if (!version.ok()) return version.status();
  if (*version > layout::kVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("it has format version ", *version,
                     ", written by a newer server; this one reads up to ", layout::kVersion));
  }
  // FULL syncs at every commit. NORMAL keeps the catalogue consistent across a power failure, too,
  // but may lose the last commits.
  const bool power = durability == DurabilityLevel::kPower;
  for (const std::string& sql :
       {std::string("PRAGMA journal_mode = WAL"),
        absl::StrCat("PRAGMA synchronous = ", power ? "FULL" : "NORMAL")}) {
    if (absl::Status status = database.Execute(sql); !status.ok()) return status;
  }
  std::string changes;
  if (*version == 0) {
    changes = layout::kSchema;
  } else {
    const absl::StatusOr<int64_t> has_sets = database.Number(layout::kHasRecordSets);
    if (!has_sets.ok()) return has_sets.status();
    changes = absl::StrCat(*version == 1 ? layout::kFromVersion1 : "",
                           *has_sets == 0 ? layout::kAddRecordSets : "");
  }
  // A log that is opened read-only fails here rather than at every call.
  if (changes.empty()) return database.Execute("BEGIN IMMEDIATE; COMMIT");
  const absl::Status status =
      database.Execute(absl::StrCat("BEGIN IMMEDIATE;", changes, SetVersion(), "; COMMIT"));
  if (!status.ok()) database.Execute("ROLLBACK").IgnoreError();
  return status;
}

// Only the server's user may read sessions, even in a directory that is readable for others. SQLite
// gives the files next to the database the mode of the database. Errors are ignored here; SQLite
// reports them.
void MakePrivate(const std::string& path) {
  const FileDescriptor file(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, kPrivate));
  for (const char* const suffix : {"", "-wal", "-shm"}) {
    struct stat properties;
    const std::string name = path + suffix;
    if (stat(name.c_str(), &properties) == 0 && (properties.st_mode & 077) != 0) {
      chmod(name.c_str(), kPrivate);
    }
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<DiskStorage::Writer>> DiskStorage::Writer::Open(
    const std::string& directory, DurabilityLevel durability) {
  const std::string path = layout::PathIn(directory, layout::kCatalogue);
  MakePrivate(path);
  const int lost = LostTransactions(path + "-wal");
  if (lost > 0) {
    Log(LogLevel::kError, "catalogue_log_damaged",
        {{"path", path + "-wal"}, {"lost_transactions", lost}});
  }
  absl::StatusOr<Database> database = Database::Open(path);
  if (!database.ok()) return database.status();
  if (absl::Status status = SetUp(*database, durability); !status.ok()) {
    return absl::Status(status.code(), absl::StrCat("'", path, "': ", status.message()));
  }
  const bool sync = durability == DurabilityLevel::kPower;
  absl::StatusOr<RecordFiles> files =
      RecordFiles::Open(layout::PathIn(directory, layout::kRecords), sync);
  if (!files.ok()) return files.status();
  for (const std::string& made : {directory, directory + "/.."}) {
    if (!sync) break;
    if (absl::Status status = SyncDirectory(made); !status.ok()) return status;
  }
  return std::unique_ptr<Writer>(
      new Writer(*std::move(database), *std::move(files), directory, lost > 0));
}

DiskStorage::Writer::Writer(Database database, RecordFiles files, const std::string& directory,
                            bool rows_lost)
    : database_(std::move(database)),
      files_(std::move(files)),
      keep_files_path_(layout::PathIn(directory, layout::kKeepFiles)),
      lost_path_(layout::PathIn(directory, layout::kLost)),
      rows_lost_(rows_lost),
      reserve_(layout::PathIn(directory, layout::kReserve)),
      begin_(database_, "BEGIN IMMEDIATE"),
      commit_(database_, "COMMIT"),
      insert_session_(database_,
                      "INSERT INTO sessions (tenant, id, sequence, lease_nanoseconds, request_id, "
                      "fingerprint, entry) VALUES (?, ?, ?, ?, ?, ?, ?)"),
      find_session_(database_,
                    "SELECT number, sequence, ended, lease_nanoseconds, request_id, fingerprint, "
                    "entry, checksum, record_count, record_parts, record_checksums "
                    "FROM sessions WHERE tenant = ? AND id = ?"),
      update_session_(database_,
                      "UPDATE sessions SET ended = ?, request_id = ?, entry = ?, record_count = ?, "
                      "record_parts = ?, record_checksums = ?, checksum = ? WHERE number = ?"),
      erase_session_(database_, "DELETE FROM sessions WHERE number = ?"),
      find_record_(database_, "SELECT checksum FROM records WHERE session = ? AND part = ?"),
      replace_record_(database_,
                      "UPDATE records SET bytes = ?, digest = ?, checksum = ? "
                      "WHERE session = ? AND part = ?"),
      insert_record_(database_,
                     "INSERT INTO records (bytes, digest, checksum, session, part) "
                     "VALUES (?, ?, ?, ?, ?)"),
      erase_records_(database_, "DELETE FROM records WHERE session = ?"),
      next_garbage_(database_, "SELECT digest FROM garbage LIMIT ?"),
      drop_garbage_(database_, "DELETE FROM garbage WHERE digest = ?"),
      is_used_(database_, "SELECT 1 FROM records WHERE digest = ?") {
  reserve_.Fill();
  OpenKeepFiles();  // created now, so that the server owns it even if another user makes the first
                    // backup
  if (rows_lost_) {
    for (const std::string& digest : Garbage(kAllGarbage)) unknown_.insert(digest);
  }
}

std::vector<absl::Status> DiskStorage::Writer::Apply(absl::Span<const SessionChange> changes) {
  std::vector<Prepared> prepared;
  prepared.reserve(changes.size());
  for (const SessionChange& change : changes) {
    prepared.emplace_back();
    WithReserve(change, [&] { return (prepared.back() = Prepare(change)).status; });
  }
  std::vector<Prepared*> group;
  for (Prepared& one : prepared) {
    if (one.status.ok()) group.push_back(&one);
  }
  // One transaction for all is cheapest; if it fails, each change gets its own.
  if (!group.empty() && !Transact(group).ok()) {
    for (Prepared*& one : group) {
      WithReserve(*one->change, [&] { return one->status = Transact({&one, 1}); });
    }
  }
  std::vector<absl::Status> statuses;
  statuses.reserve(prepared.size());
  for (const Prepared& one : prepared) {
    if (!one.status.ok()) Discard(one);
    statuses.push_back(one.status);
  }
  return statuses;
}

void DiskStorage::Writer::WithReserve(const SessionChange& change,
                                      absl::FunctionRef<absl::Status()> attempt) {
  const bool makes_room = change.report || change.erase;
  if (!absl::IsResourceExhausted(attempt()) || !makes_room || !reserve_.Release()) return;
  attempt().IgnoreError();
  reserve_.Fill();  // before other processes use the free space
}

DiskStorage::Writer::Prepared DiskStorage::Writer::Prepare(const SessionChange& change) {
  Prepared prepared;
  prepared.change = &change;
  const auto keep = [&](int part, std::string bytes) {
    absl::StatusOr<Record> record = Keep(std::move(bytes));
    prepared.status.Update(record.status());
    if (record.ok()) prepared.records[part] = *std::move(record);
  };
  if (change.create) keep(layout::kBinding, change.create->binding);
  if (change.global) keep(layout::kGlobal, *change.global);
  if (change.report) keep(layout::kReport, *change.report);
  for (const auto& [layer, record] : change.layers) {
    if (prepared.status.ok()) keep(layer, record());
  }
  return prepared;
}

absl::StatusOr<DiskStorage::Writer::Record> DiskStorage::Writer::Keep(std::string bytes) {
  if (bytes.size() <= layout::kMaxInlineBytes) return Record{std::move(bytes), std::nullopt};
  absl::StatusOr<std::string> digest = files_.Write(bytes);
  if (!digest.ok()) {
    discarded_.insert(Sha256(bytes));  // it may exist, but not be synced
    return digest.status();
  }
  return Record{std::nullopt, *std::move(digest)};
}

absl::Status DiskStorage::Writer::Transact(absl::Span<Prepared* const> group) {
  absl::Status status = begin_.With().Run();
  for (const Prepared* prepared : group) {
    if (status.ok()) status = Write(*prepared);
  }
  if (status.ok()) {
    status = commit_.With().Run();
    if (!status.ok()) failed_commit_ = true;
  }
  // After some errors SQLite has rolled back by itself.
  if (!status.ok() && sqlite3_get_autocommit(database_.get()) == 0) {
    database_.Execute("ROLLBACK").IgnoreError();
  }
  return status;
}

absl::StatusOr<std::optional<DiskStorage::Writer::Found>> DiskStorage::Writer::Find(
    const SessionKey& key) {
  const absl::StatusOr<bool> there = find_session_.With(key.first, key.second).Next();
  if (!there.ok()) return there.status();
  std::optional<Found> found;
  if (*there) {
    found.emplace();
    found->number = find_session_.Integer(0);
    found->row = {key,
                  static_cast<uint64_t>(find_session_.Integer(1)),
                  find_session_.Integer(2) != 0,
                  absl::Nanoseconds(find_session_.Integer(3)),
                  find_session_.Bytes(4),
                  find_session_.Bytes(5),
                  find_session_.Bytes(6)};
    if (!find_session_.IsNull(7) && !find_session_.IsNull(8)) {
      found->records = {find_session_.Integer(8), find_session_.Integer(9),
                        find_session_.Integer(10)};
    }
  }
  find_session_.Reset();
  return found;
}

// The row gets its checksum in Update.
absl::StatusOr<DiskStorage::Writer::Found> DiskStorage::Writer::Create(
    const SessionChange& change) {
  Found created = {0, change.create->row, RecordSet()};
  CatalogueRow& row = created.row;
  row.key = change.key;
  row.ended = false;
  absl::Status status =
      insert_session_
          .With(row.key.first, row.key.second, static_cast<int64_t>(row.sequence),
                absl::ToInt64Nanoseconds(row.lease), row.request_id, row.fingerprint, row.entry)
          .Run();
  if (!status.ok()) return status;
  created.number = database_.last_insert_rowid();
  // The number may be that of an earlier session whose row was lost by damage.
  status = erase_records_.With(created.number).Run();
  if (!status.ok()) return status;
  return created;
}

absl::Status DiskStorage::Writer::Write(const Prepared& prepared) {
  const SessionChange& change = *prepared.change;
  absl::StatusOr<std::optional<Found>> found = Find(change.key);
  if (!found.ok()) return found.status();
  if (change.create) {
    if (*found) return AlreadyStored(change.key);
    absl::StatusOr<Found> created = Create(change);
    if (!created.ok()) return created.status();
    *found = *std::move(created);
  }
  const int64_t number = *found ? (*found)->number : 0;
  if (change.erase) {
    absl::Status status = erase_records_.With(number).Run();
    if (status.ok()) status = erase_session_.With(number).Run();
    return status;
  }
  if (!*found || (*found)->row.ended) return NotStored(change.key);

  Found& session = **found;
  absl::Status status;
  if (change.entry) session.row.entry = *change.entry;
  if (change.report) {
    session.row.ended = true;
    session.row.request_id.clear();
    session.records.emplace();
    status = erase_records_.With(number).Run();
  }
  for (const auto& [part, record] : prepared.records) {
    if (!status.ok()) break;
    if (change.report && part != layout::kReport) continue;
    status = Put(session, part, record);
  }
  return status.ok() ? Update(session) : status;
}

absl::Status DiskStorage::Writer::Update(const Found& session) {
  const CatalogueRow& row = session.row;
  std::optional<int64_t> count, parts, checksums;
  if (session.records) {
    count = session.records->count;
    parts = session.records->parts;
    checksums = session.records->checksums;
  }
  return update_session_
      .With(int64_t{row.ended}, row.request_id, row.entry, count, parts, checksums,
            ChecksumOf(row, session.records), session.number)
      .Run();
}

// Not a single "INSERT ... ON CONFLICT DO UPDATE": its conflict handling would override that of the
// triggers, and fail when two sessions replace records with the same digest.
absl::Status DiskStorage::Writer::Put(Found& session, int part, const Record& record) {
  const absl::StatusOr<bool> there = find_record_.With(session.number, part).Next();
  if (!there.ok()) return there.status();
  if (*there && find_record_.IsNull(0)) session.records.reset();  // from version 1
  if (*there && session.records) session.records->Change(part, find_record_.Integer(0), -1);
  find_record_.Reset();
  const int64_t checksum = ChecksumOf(session.number, part, record.bytes, record.digest);
  if (session.records) session.records->Change(part, checksum, 1);
  Statement& put = *there ? replace_record_ : insert_record_;
  return put.With(record.bytes, record.digest, checksum, session.number, part).Run();
}

void DiskStorage::Writer::Discard(const Prepared& prepared) {
  for (const auto& [part, record] : prepared.records) {
    if (record.digest) discarded_.insert(*record.digest);
  }
}

absl::StatusOr<bool> DiskStorage::Writer::IsUsed(absl::string_view digest) {
  const absl::StatusOr<bool> used = is_used_.With(digest).Next();
  is_used_.Reset();
  return used;
}

std::vector<std::string> DiskStorage::Writer::Garbage(int limit) {
  std::vector<std::string> digests;
  next_garbage_.With(limit);
  while (true) {
    const absl::StatusOr<bool> more = next_garbage_.Next();
    if (!more.ok() || !*more) return digests;
    digests.push_back(next_garbage_.Bytes(0));
  }
}

bool DiskStorage::Writer::CollectGarbage() {
  const std::vector<std::string> digests = Garbage(kGarbagePerRound);
  if (digests.empty() && discarded_.empty() && unknown_.empty()) return Sweep();
  const FileDescriptor keep = OpenKeepFiles();
  if (!keep.valid() || flock(keep.get(), LOCK_EX | LOCK_NB) != 0) return false;  // a backup
  const bool ok = OverwriteFailedCommit().ok() && RemoveDiscarded() && SetAsideUnknown() &&
                  RemoveGarbage(digests);
  reserve_.Fill();
  return ok;
}

// Without it no file is removed. Opening fails if another user, such as root, owns it.
FileDescriptor DiskStorage::Writer::OpenKeepFiles() {
  FileDescriptor keep(
      open(keep_files_path_.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, kPrivate));
  if (!keep.valid() && !warned_files_stay_) {
    Log(LogLevel::kError, "files_not_removed",
        {{"error", FileError("open", keep_files_path_).message()}});
  }
  warned_files_stay_ = !keep.valid();
  return keep;
}

absl::Status DiskStorage::Writer::OverwriteFailedCommit() {
  if (!failed_commit_) return absl::OkStatus();
  const absl::Status status =
      database_.Execute(SetVersion());  // a write, although the value does not change
  failed_commit_ = !status.ok();
  return status;
}

bool DiskStorage::Writer::RemoveDiscarded() {
  while (!discarded_.empty()) {
    const absl::StatusOr<bool> used = IsUsed(*discarded_.begin());
    if (!used.ok() || (!*used && !files_.Remove(*discarded_.begin()).ok())) return false;
    discarded_.erase(discarded_.begin());
  }
  return true;
}

bool DiskStorage::Writer::SetAsideUnknown() {
  if (unknown_.empty()) return true;
  int64_t files = 0;
  while (!unknown_.empty()) {
    const absl::StatusOr<bool> used = IsUsed(*unknown_.begin());  // it may be used by now
    if (!used.ok()) return false;
    if (!*used && !files_.SetAside(*unknown_.begin(), lost_path_).ok()) return false;
    if (!*used) ++files;
    unknown_.erase(unknown_.begin());
  }
  Log(LogLevel::kWarning, "files_set_aside", {{"path", lost_path_}, {"files", files}});
  return true;
}

bool DiskStorage::Writer::RemoveGarbage(absl::Span<const std::string> digests) {
  if (digests.empty()) return true;
  bool ok = begin_.With().Run().ok();
  for (const std::string& digest : digests) {
    const absl::StatusOr<bool> used = IsUsed(digest);
    ok = ok && used.ok() && (*used || files_.Remove(digest).ok());
    ok = ok && drop_garbage_.With(digest).Run().ok();
  }
  ok = ok && commit_.With().Run().ok();
  if (sqlite3_get_autocommit(database_.get()) == 0) database_.Execute("ROLLBACK").IgnoreError();
  return ok;
}

// Finds files that a crashed process left without a reference, one folder at a time.
bool DiskStorage::Writer::Sweep() {
  if (swept_ == RecordFiles::kFolders) return false;
  bool found = false;
  files_.List(swept_, [&](const std::string& digest) {
    const absl::StatusOr<bool> used = IsUsed(digest);
    if (!used.ok() || *used) return;
    found = true;
    (rows_lost_ ? unknown_ : discarded_).insert(digest);
  });
  ++swept_;
  return found || swept_ < RecordFiles::kFolders;
}

}  // namespace nni_compression::server
