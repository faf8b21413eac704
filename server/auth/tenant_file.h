// The tenants' file, reloaded when it changes.
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

// Looks up tenants and their permissions by token, from a file in the format of access/tenants.h. A
// changed file is reloaded; one that is missing, unreadable, or empty where there were tokens
// changes nothing, and the error is logged. Lookups use memory only and never wait for the file.
// Thread-safe.
class TenantFile {
 public:
  // INVALID_ARGUMENT, naming the line.
  static absl::StatusOr<std::shared_ptr<TenantFile>> Open(const std::string& path);

  // Starts watching the file: changes take effect within a second. At most once.
  void Watch() { watcher_->Start(); }

  // As FileWatcher::Poll.
  void Poll() { watcher_->Poll(); }

  // nullopt for a token that is not in the file.
  std::optional<Caller> Find(absl::string_view token) const;

  // The tenant of this name, which needs no line in the file.
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
