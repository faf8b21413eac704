// The data directory of a server, as its storage writes it and `compressionctl` copies it:
//
//   catalogue.db    sessions and their small records, in SQLite
//   records/ab/...  large records, each named by its SHA-256: two digits, then the rest
//   keep-files      locked by a backup; no record file is removed meanwhile
//   reserve         space that is released to write with when the disk is full
//   lost/           record files that were damaged
//   lock            locked by the server
#ifndef NNI_COMPRESSION_SERVER_DISK_LAYOUT_H_
#define NNI_COMPRESSION_SERVER_DISK_LAYOUT_H_

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace nni_compression::server::layout {

constexpr int kVersion = 2;

constexpr char kCatalogue[] = "catalogue.db";
// What a copy of it is called until the rest has been copied.
constexpr char kUnfinishedCatalogue[] = "catalogue.db.unfinished";
constexpr char kRecords[] = "records";
constexpr char kKeepFiles[] = "keep-files";
constexpr char kReserve[] = "reserve";
constexpr char kLost[] = "lost";
constexpr char kLock[] = "lock";

// What the directory has under one of the names above.
std::string PathIn(const std::string& directory, absl::string_view name);

// Of the record file with this SHA-256, below kRecords.
std::string RecordPath(absl::string_view digest);

// Whether a copy into the directory was begun and not finished. Its records would be taken for ones
// that no session refers to. Where there is a catalogue as well, sessions have been stored since.
bool HasUnfinishedCopy(const std::string& directory);

// Whether the open directory is still what `path` names. A copy that fails removes the directory
// that it has made, and another one may be made under the same name.
bool IsAt(int directory, const std::string& path);

// Parts of a session that are no layers.
constexpr int kBinding = -1;
constexpr int kGlobal = -2;
constexpr int kReport = -3;

// For errors.
std::string PartName(int part);

// Larger records are files.
constexpr size_t kMaxInlineBytes = 32 << 10;

constexpr char kSchema[] = R"(
CREATE TABLE sessions (
  number INTEGER PRIMARY KEY,
  tenant BLOB NOT NULL,
  id BLOB NOT NULL,
  sequence INTEGER NOT NULL,
  ended INTEGER NOT NULL DEFAULT 0,
  lease_nanoseconds INTEGER NOT NULL,
  request_id BLOB NOT NULL,
  fingerprint BLOB NOT NULL,
  entry BLOB NOT NULL,
  checksum INTEGER,
  record_count INTEGER,
  record_parts INTEGER,
  record_checksums INTEGER,
  UNIQUE (tenant, id));
CREATE TABLE records (
  session INTEGER NOT NULL,
  part INTEGER NOT NULL,
  bytes BLOB,
  digest BLOB,
  checksum INTEGER,
  PRIMARY KEY (session, part)) WITHOUT ROWID;
CREATE INDEX records_by_digest ON records (digest) WHERE digest IS NOT NULL;
CREATE TABLE garbage (digest BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TRIGGER record_replaced AFTER UPDATE ON records WHEN old.digest IS NOT NULL BEGIN
  INSERT OR IGNORE INTO garbage VALUES (old.digest); END;
CREATE TRIGGER record_removed AFTER DELETE ON records WHEN old.digest IS NOT NULL BEGIN
  INSERT OR IGNORE INTO garbage VALUES (old.digest); END;
)";

// What version 1 did not have. Its rows have no checksum until they are written again.
constexpr char kFromVersion1[] = R"(
ALTER TABLE sessions ADD COLUMN checksum INTEGER;
ALTER TABLE records ADD COLUMN checksum INTEGER;
)";

// What sessions of version 1, and of unfinished versions 2, do not have: see RecordSet. Theirs are
// not known before they have ended.
constexpr char kHasRecordSets[] =
    "SELECT COUNT(*) FROM pragma_table_info('sessions') WHERE name = 'record_count'";
constexpr char kAddRecordSets[] = R"(
ALTER TABLE sessions ADD COLUMN record_count INTEGER;
ALTER TABLE sessions ADD COLUMN record_parts INTEGER;
ALTER TABLE sessions ADD COLUMN record_checksums INTEGER;
)";

}  // namespace nni_compression::server::layout

#endif  // NNI_COMPRESSION_SERVER_DISK_LAYOUT_H_
