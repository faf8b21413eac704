// The writing side of DiskStorage.
#ifndef NNI_COMPRESSION_SERVER_STORAGE_DISK_WRITER_H_
#define NNI_COMPRESSION_SERVER_STORAGE_DISK_WRITER_H_

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/platform/file_descriptor.h"
#include "server/storage/disk_storage.h"
#include "server/storage/record_files.h"
#include "server/storage/reserve.h"
#include "server/storage/row_checksums.h"
#include "server/storage/sqlite.h"

namespace nni_compression::server {

// Thread-compatible.
class DiskStorage::Writer {
 public:
  // Creates the catalogue if it is missing. The caller holds the lock of the directory.
  static absl::StatusOr<std::unique_ptr<Writer>> Open(const std::string& directory,
                                                      DurabilityLevel durability);

  std::vector<absl::Status> Apply(absl::Span<const SessionChange> changes);
  bool CollectGarbage();

  const RecordFiles& files() const { return files_; }

 private:
  // A record to be written: its bytes, or the digest of its file.
  struct Record {
    std::optional<std::string> bytes;
    std::optional<std::string> digest;
  };
  // A session's row. `records` is nullopt if the row does not list them.
  struct Found {
    int64_t number = 0;
    CatalogueRow row;
    std::optional<RecordSet> records;
  };
  // A change whose large records have been written to files.
  struct Prepared {
    const SessionChange* change = nullptr;
    std::map<int, Record> records;
    absl::Status status;
  };

  Writer(Database database, RecordFiles files, const std::string& directory, bool rows_lost);

  // Retries with the space of the reserve when the disk is full and the change frees space.
  void WithReserve(const SessionChange& change, absl::FunctionRef<absl::Status()> attempt);

  Prepared Prepare(const SessionChange& change);
  absl::StatusOr<Record> Keep(std::string bytes);
  absl::Status Transact(absl::Span<Prepared* const> group);
  absl::Status Write(const Prepared& prepared);
  absl::StatusOr<std::optional<Found>> Find(const SessionKey& key);
  absl::StatusOr<Found> Create(const SessionChange& change);
  absl::Status Put(Found& session, int part, const Record& record);
  absl::Status Update(const Found& session);
  void Discard(const Prepared& prepared);
  absl::Status OverwriteFailedCommit();
  FileDescriptor OpenKeepFiles();
  // Up to `limit` digests from the catalogue; none if it cannot be read.
  std::vector<std::string> Garbage(int limit);
  bool RemoveGarbage(absl::Span<const std::string> digests);
  bool RemoveDiscarded();
  bool SetAsideUnknown();
  bool Sweep();
  absl::StatusOr<bool> IsUsed(absl::string_view digest);

  Database database_;
  RecordFiles files_;
  const std::string keep_files_path_;
  const std::string lost_path_;
  // Rows were lost, but not their files: what the sweep finds is set aside.
  const bool rows_lost_;
  bool warned_files_stay_ = false;
  Reserve reserve_;
  Statement begin_, commit_;
  Statement insert_session_, find_session_, update_session_, erase_session_;
  Statement find_record_, replace_record_, insert_record_, erase_records_;
  Statement next_garbage_, drop_garbage_, is_used_;

  // Files of failed changes, which may be unused. Those that are left when the process ends are
  // found by the sweep of the next one.
  std::set<std::string> discarded_;
  std::set<std::string> unknown_;  // unreferenced files, found after rows were lost
  // The write-ahead log may end with a commit that failed but is complete: the next process would
  // accept it, and need its files.
  bool failed_commit_ = false;
  int swept_ = 0;  // number of folders that were swept
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_STORAGE_DISK_WRITER_H_
