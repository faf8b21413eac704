// A storage in memory.
#ifndef NNI_COMPRESSION_SERVER_STORAGE_MEMORY_STORAGE_H_
#define NNI_COMPRESSION_SERVER_STORAGE_MEMORY_STORAGE_H_

#include <map>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "server/base/mutex.h"
#include "server/storage/storage.h"

namespace nni_compression::server {

// For programs that restart their own servers, and for tests. A server without --data_dir has no
// storage at all, since that would keep everything twice.
class MemoryStorage : public Storage {
 public:
  std::vector<absl::Status> Apply(absl::Span<const SessionChange> changes) override;
  absl::StatusOr<std::vector<CatalogueRow>> List() override;
  absl::StatusOr<StoredSession> Load(const SessionKey& key) override;
  absl::StatusOr<std::string> LoadReport(const SessionKey& key) override;

 private:
  struct Session {
    CatalogueRow row;
    StoredSession state;
    std::string report;
  };

  absl::Status ApplyOne(const SessionChange& change) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Mutex mutex_;
  std::map<SessionKey, Session> sessions_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_STORAGE_MEMORY_STORAGE_H_
