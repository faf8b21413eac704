// Where sessions outlive the process: the seam between the server and a disk, or a database.
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

// NOT_FOUND, as every implementation says it.
inline absl::Status NotStored(const SessionKey& key) {
  return absl::NotFoundError(absl::StrCat("session '", key.second, "' is not stored"));
}

// ALREADY_EXISTS, likewise.
inline absl::Status AlreadyStored(const SessionKey& key) {
  return absl::AlreadyExistsError(absl::StrCat("session '", key.second, "' is stored already"));
}

// What listing and expiry need of a session without reading any of its state.
struct CatalogueRow {
  SessionKey key;
  uint64_t sequence = 0;  // orders sessions by age
  bool ended = false;
  absl::Duration lease;
  std::string request_id;
  std::string fingerprint;  // of the request
  std::string entry;        // what a listing shows; means nothing to the storage
  bool damaged = false;     // not as it was written: loading gives DATA_LOSS
};

// What a session is made of again. All of it is bytes that mean nothing to the storage.
struct StoredSession {
  std::string entry;  // as CatalogueRow's
  std::string binding;
  std::string global;
  std::map<int, std::string> layers;  // those that were ever written
};

// A change of one session, applied in whole or not at all. Only what is set changes.
struct SessionChange {
  struct Creation {
    CatalogueRow row;  // of the change's key
    std::string binding;
  };

  SessionKey key;
  std::optional<Creation> create;     // a session of this key must not be there yet
  std::optional<std::string> entry;   // of the catalogue's row
  std::optional<std::string> global;  // the global record

  // Records of layers. Each is called once, by the thread that writes, so that what is large is
  // there as bytes only while it is written.
  std::map<int, std::function<std::string()>> layers;

  // The session has ended: this report takes the place of its state.
  std::optional<std::string> report;

  // Nothing is left of it, live or ended. OK when there was nothing.
  bool erase = false;
};

// Thread-safe, but one thread at a time writes. Every method blocks. An implementation passes
// tests/server/storage/contract_test.cc. Messages of errors name files: they are for the log, not
// for callers.
class Storage {
 public:
  virtual ~Storage() = default;

  // Applies the changes in their order and says for each what came of it; one that fails leaves no
  // trace and does not keep the others from being applied. When it returns they will be there after
  // the process has died. NOT_FOUND for a session that is not there or has ended, ALREADY_EXISTS
  // for a creation of one that is, RESOURCE_EXHAUSTED when there is no room or nothing can be
  // written.
  virtual std::vector<absl::Status> Apply(absl::Span<const SessionChange> changes) = 0;

  // All sessions, live and ended, oldest first.
  virtual absl::StatusOr<std::vector<CatalogueRow>> List() = 0;

  // NOT_FOUND for a session that is not there or has ended, DATA_LOSS, which names what is damaged,
  // when something of it cannot be read.
  virtual absl::StatusOr<StoredSession> Load(const SessionKey& key) = 0;

  // The report of a session that has ended; errors as Load's.
  virtual absl::StatusOr<std::string> LoadReport(const SessionKey& key) = 0;

  // Frees some of what nothing refers to any more, and says whether there may be more. Called by
  // the thread that writes, when it has time; takes a few milliseconds.
  virtual bool CollectGarbage() { return false; }
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_STORAGE_STORAGE_H_
