// Edits the tenant file while a server uses it.
#ifndef NNI_COMPRESSION_SERVER_ACCESS_TENANT_EDITOR_H_
#define NNI_COMPRESSION_SERVER_ACCESS_TENANT_EDITOR_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/access/tenants.h"

namespace nni_compression::access {

// Each change is made under a lock (FILE.lock), synced to disk and renamed into place: readers see
// all of it or none, concurrent changes are both applied, and a power failure undoes none. Comments
// and the file's owner and mode are kept. A new file is readable only for its owner; if root makes
// it, it belongs to the folder's owner. INVALID_ARGUMENT, and no change, when the file is not a
// valid tenant file; UNAVAILABLE when it cannot be read or written. Thread-safe.
class TenantEditor {
 public:
  explicit TenantEditor(std::string path) : path_(std::move(path)) {}

  // INVALID_ARGUMENT when there is no file.
  absl::StatusOr<Tenants> Read() const;

  // Returns a new token of the tenant, 64 hexadecimal digits; only its digest is written. `admin`
  // makes the tenant an operator. Makes the file if it is missing.
  absl::StatusOr<std::string> Add(absl::string_view tenant, bool admin) const;

  // Revokes all tokens of the tenant, or the one whose digest begins with these hexadecimal digits.
  // Revoking the last token removes the tenant's own line as well. Returns the number of revoked
  // tokens: 0 for a tenant that had only its own line. NOT_FOUND when there is neither,
  // INVALID_ARGUMENT when several digests match.
  absl::StatusOr<int> Revoke(absl::string_view tenant, absl::string_view digest_prefix) const;

  // Sets limits, each in the syntax of ReadLimit; other limits stay. Returns the resulting quota.
  // NOT_FOUND for a tenant that has neither a token nor a line of its own, unless `without_token`
  // is set: the tenant is the name in a client certificate.
  absl::StatusOr<Quota> SetQuota(absl::string_view tenant, absl::Span<const std::string> limits,
                                 bool without_token = false) const;

 private:
  const std::string path_;
};

}  // namespace nni_compression::access

#endif  // NNI_COMPRESSION_SERVER_ACCESS_TENANT_EDITOR_H_
