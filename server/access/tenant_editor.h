// Changes of the file of tenants while a server uses it.
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

// Each change is made under a lock (FILE.lock) and put in place in one piece, on the disk, so that
// nobody sees half of it, two of them are both there, and none comes undone when the power fails.
// Remarks stay, and so do the file's owner and mode; a new file is readable for its owner only, and
// if root makes it, its owner is the folder's. INVALID_ARGUMENT when the file is not one of
// tenants, and nothing changes then; UNAVAILABLE when it cannot be read or written. Thread-safe.
class TenantEditor {
 public:
  explicit TenantEditor(std::string path) : path_(std::move(path)) {}

  // INVALID_ARGUMENT without the file.
  absl::StatusOr<Tenants> Read() const;

  // A new token of the tenant, 64 hexadecimal digits; only its digest is written. `admin` makes the
  // tenant an operator. Makes the file if it is missing.
  absl::StatusOr<std::string> Add(absl::string_view tenant, bool admin) const;

  // Takes the tenant's tokens away, or the one whose digest begins with these hexadecimal digits;
  // with the last one the tenant's own line goes. Returns how many tokens went: 0 for a tenant that
  // only had such a line. NOT_FOUND when there is neither, INVALID_ARGUMENT when several digests
  // begin so.
  absl::StatusOr<int> Revoke(absl::string_view tenant, absl::string_view digest_prefix) const;

  // Sets limits, each as ReadLimit takes it; others stay. Returns what counts then. NOT_FOUND for a
  // tenant that has neither a token nor a line of its own, unless it is `without_token`: the name
  // of a certificate.
  absl::StatusOr<Quota> SetQuota(absl::string_view tenant, absl::Span<const std::string> limits,
                                 bool without_token = false) const;

 private:
  const std::string path_;
};

}  // namespace nni_compression::access

#endif  // NNI_COMPRESSION_SERVER_ACCESS_TENANT_EDITOR_H_
