// The file of tenants, as it is now.
#ifndef NNI_COMPRESSION_SERVER_AUTH_TENANT_FILE_H_
#define NNI_COMPRESSION_SERVER_AUTH_TENANT_FILE_H_

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/auth/authenticator.h"
#include "server/base/file_watcher.h"

namespace nni_compression::server {

// Knows whose a token is, and what a tenant may, from a file as access/tenants.h has it. A file
// that changed is read again; one that is gone, cannot be read or is empty where there were tokens
// changes nothing, which is logged. Calls look things up in memory: none waits for the file.
// Thread-safe.
class TenantFile {
 public:
  // INVALID_ARGUMENT that names the line.
  static absl::StatusOr<std::shared_ptr<TenantFile>> Open(const std::string& path);

  // Changes of the file count within a second from now on. Once.
  void Watch() { watcher_->Start(); }

  // As FileWatcher::Look.
  void Look() { watcher_->Look(); }

  // Nullopt for a token that the file does not have.
  std::optional<Caller> Find(absl::string_view token) const;

  // The tenant of this name, which may have no line in the file.
  Caller Named(const std::string& tenant) const;

 private:
  struct Table;
  class Current;
  TenantFile(std::shared_ptr<Current> current, std::unique_ptr<FileWatcher> watcher)
      : current_(std::move(current)), watcher_(std::move(watcher)) {}

  const std::shared_ptr<Current> current_;
  const std::unique_ptr<FileWatcher> watcher_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_AUTH_TENANT_FILE_H_
