// The file of tenants, as it is now.
#ifndef NNI_COMPRESSION_SERVER_TENANT_FILE_H_
#define NNI_COMPRESSION_SERVER_TENANT_FILE_H_

#include <sys/stat.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "access/tenants.h"
#include "server/authenticator.h"
#include "server/clock.h"
#include "server/mutex.h"

namespace nni_compression::server {

// Knows whose a token is, and what a tenant may, from a file as access/tenants.h has it. The file
// is read anew when it has changed, which is looked for once a second; one that is gone or cannot
// be read changes nothing, which is logged. Thread-safe.
class TenantFile {
 public:
  // INVALID_ARGUMENT that names the line. The clock outlives it.
  static absl::StatusOr<std::shared_ptr<TenantFile>> Open(const std::string& path,
                                                          const Clock* clock = Clock::System());

  // Nothing for a token that the file does not have. How long that takes tells nothing of tokens.
  std::optional<Caller> Find(absl::string_view token);

  // The tenant of this name, which may have no line in the file.
  Caller Named(const std::string& tenant);

 private:
  // What tells one version of the file from another.
  struct Version {
    dev_t device = 0;
    ino_t inode = 0;
    off_t size = 0;
    timespec modified = {};
    bool operator==(const Version& other) const;
  };

  TenantFile(std::string path, const Clock* clock) : path_(std::move(path)), clock_(clock) {}

  absl::StatusOr<access::Tenants> Read() const;
  absl::StatusOr<Version> Look() const;
  std::shared_ptr<const access::Tenants> Current();

  const std::string path_;
  const Clock* const clock_;
  Mutex mutex_;
  std::shared_ptr<const access::Tenants> tenants_ ABSL_GUARDED_BY(mutex_);
  Version version_ ABSL_GUARDED_BY(mutex_);
  absl::Time looked_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_TENANT_FILE_H_
