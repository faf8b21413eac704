// The interface to a disk or a database in which sessions outlive the process.
#ifndef NNI_COMPRESSION_SERVER_STORAGE_STORAGE_H_
#define NNI_COMPRESSION_SERVER_STORAGE_STORAGE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace nni_compression::server {

// Tenant and id.
using SessionKey = std::pair<std::string, std::string>;

// The NOT_FOUND of every implementation.
inline absl::Status NotStored(const SessionKey& key) {
  return absl::NotFoundError(absl::StrCat("session '", key.second, "' is not stored"));
}

// The ALREADY_EXISTS of every implementation.
inline absl::Status AlreadyStored(const SessionKey& key) {
  return absl::AlreadyExistsError(absl::StrCat("session '", key.second, "' is stored already"));
}

// What listing and expiry need of a session, without its state.
struct CatalogueRow {
  SessionKey key;
  uint64_t sequence = 0;  // orders sessions by age
  bool ended = false;
  absl::Duration lease;
  std::string request_id;
  std::string fingerprint;  // of the request
  std::string entry;        // what a listing shows; opaque to the storage
  bool damaged = false;     // differs from what was written: loading returns DATA_LOSS
};

// The stored state of a session. All of it is opaque to the storage.
struct StoredSession {
  std::string entry;  // as CatalogueRow's
  std::string binding;
  std::string global;
  std::map<int, std::string> layers;  // only layers that were written
};

// A change of one session, applied atomically. Fields that are unset do not change.
struct SessionChange {
  struct Creation {
    CatalogueRow row;  // with the change's key
    std::string binding;
  };

  SessionKey key;
  std::optional<Creation> create;     // a session of this key must not exist
  std::optional<std::string> entry;   // of the catalogue row
  std::optional<std::string> global;  // the global record

  // Records of layers. Each function is called once, by the writing thread, so that large records
  // are serialized only while they are written.
  std::map<int, std::function<std::string()>> layers;

  // The session has ended: this report replaces its state.
  std::optional<std::string> report;

  // Removes the session, live or ended. OK when it does not exist.
  bool erase = false;
};

// Thread-safe, but only one thread at a time may write. Every method blocks. An implementation
// passes tests/server/storage/contract_test.cc. Error messages name files: they are for the log,
// not for callers.
class Storage {
 public:
  virtual ~Storage() = default;

  // Applies the changes in order and returns the status of each; a failed change has no effect on
  // the session or on other changes. When it returns, the changes survive a crash of the process.
  // NOT_FOUND for a session that does not exist or has ended, ALREADY_EXISTS for creating an
  // existing one, RESOURCE_EXHAUSTED when the storage is full or not writable.
  virtual std::vector<absl::Status> Apply(absl::Span<const SessionChange> changes) = 0;

  // All sessions, live and ended, oldest first.
  virtual absl::StatusOr<std::vector<CatalogueRow>> List() = 0;

  // NOT_FOUND for a session that does not exist or has ended, DATA_LOSS, naming the damaged part,
  // when part of it cannot be read.
  virtual absl::StatusOr<StoredSession> Load(const SessionKey& key) = 0;

  // The report of an ended session; errors as Load.
  virtual absl::StatusOr<std::string> LoadReport(const SessionKey& key) = 0;

  // Frees some unreferenced data; returns whether there may be more. Called by the writing thread
  // when it is idle; takes a few milliseconds.
  virtual bool CollectGarbage() { return false; }
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_STORAGE_STORAGE_H_
