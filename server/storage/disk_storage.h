// Sessions in a directory.
//
//   DIR/lock                    held by the server that uses DIR
//   DIR/catalogue.db, -wal, -shm   SQLite, write-ahead log
//     sessions   a row for each session: what listing and expiry need
//     records    part by part, what a session is made of: bytes, or the digest of a file
//                part >= 0: the record of that layer; -1: the binding; -2: the global record;
//                -3: the report, which is all that an ended session has
//                rows of both have checksums, and a session's row says which records it has, see
//                row_checksums.h
//     garbage    digests of files that a record referred to and may not any more
//   DIR/records/ab/cdef...      files, see record_files.h; for records above 32 KiB
//   DIR/keep-files              whoever makes a backup holds a shared lock on it; while there is
//                               one, no file is removed
//   DIR/reserve                 room on a disk that is full, for ending sessions
//   DIR/lost/                   record files that no row refers to, found after the write-ahead log
//                               was damaged: rows that are lost may have named them
//
// A file is whole before a record refers to it, and is removed after no record does: a crash at any
// moment leaves at most garbage. A change that fails while SQLite commits it may be there once the
// process has died, as one may whose answer was lost. PRAGMA user_version is the version of all
// this; the bytes inside have versions of their own (compression/state.h) or are protobuf messages.
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
  kProcess,  // the end of the process
  kPower,    // that of the machine, too: all is synced to the disk first
};

struct DiskStorageOptions {
  std::string directory;
  DurabilityLevel durability = DurabilityLevel::kProcess;
  absl::Duration lock_wait;  // for another server to let go of the directory
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

  const DataDirectory directory_;  // first: it is let go of last
  const std::unique_ptr<Writer> writer_;
  const std::unique_ptr<Reader> reader_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_STORAGE_DISK_STORAGE_H_
