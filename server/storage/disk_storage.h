// Sessions in a directory.
//
//   DIR/lock                    held by the server that uses DIR
//   DIR/catalogue.db, -wal, -shm   SQLite, write-ahead log
//     sessions   one row per session: what listing and expiry need
//     records    the parts of a session: bytes, or the digest of a file
//                part >= 0: the record of that layer; -1: the binding; -2: the global record;
//                -3: the report, the only record of an ended session
//                rows of both have checksums, and a session's row lists its records, see
//                row_checksums.h
//     garbage    digests of files that a record referred to and that may be unused now
//   DIR/records/ab/cdef...      files, see record_files.h; for records above 32 KiB
//   DIR/keep-files              a running backup holds a shared lock on it; no file is removed
//                               meanwhile
//   DIR/reserve                 space that is freed when the disk is full, to end sessions
//   DIR/lost/                   record files that no row refers to, found after the write-ahead log
//                               was damaged: lost rows may have referred to them
//
// A file is complete before a record refers to it, and is removed after no record does: a crash at
// any time leaves at most garbage. A change whose commit fails in SQLite may still be found after a
// restart, like one whose answer was lost. PRAGMA user_version is the version of this layout; the
// bytes inside have versions of their own (compression/state.h) or are protobuf messages.
#ifndef NNI_COMPRESSION_SERVER_STORAGE_DISK_STORAGE_H_
#define NNI_COMPRESSION_SERVER_STORAGE_DISK_STORAGE_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "server/storage/data_directory.h"
#include "server/storage/storage.h"

namespace nni_compression::server {

// What an answered call survives.
enum class DurabilityLevel {
  kProcess,  // a crash of the process
  kPower,    // also a crash or power failure of the machine: changes are synced to disk first
};

struct DiskStorageOptions {
  std::string directory;
  DurabilityLevel durability = DurabilityLevel::kProcess;
  absl::Duration lock_wait;  // for another server to release the directory
};

class DiskStorage : public Storage {
 public:
  // FAILED_PRECONDITION when another server uses the directory, when it is on a network file
  // system, or when a newer version of the server wrote it; DATA_LOSS when the catalogue is
  // damaged.
  static absl::StatusOr<std::unique_ptr<DiskStorage>> Open(const DiskStorageOptions& options);

  ~DiskStorage() override;

  std::vector<absl::Status> Apply(absl::Span<const SessionChange> changes) override;
  absl::StatusOr<std::vector<CatalogueRow>> List() override;
  absl::StatusOr<StoredSession> Load(const SessionKey& key) override;
  absl::StatusOr<std::string> LoadReport(const SessionKey& key) override;
  bool CollectGarbage() override;

 private:
  class Writer;
  class Reader;
  DiskStorage(DataDirectory directory, std::unique_ptr<Writer> writer,
              std::unique_ptr<Reader> reader);

  const DataDirectory directory_;  // first: it is released last
  const std::unique_ptr<Writer> writer_;
  const std::unique_ptr<Reader> reader_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_STORAGE_DISK_STORAGE_H_
