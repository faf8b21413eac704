#include "server/tenant_file.h"

#include <openssl/crypto.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/log.h"

namespace nni_compression::server {
namespace {

constexpr absl::Duration kLookEvery = absl::Seconds(1);

Caller CallerOf(const access::Tenants& tenants, const std::string& name) {
  const auto it = tenants.named.find(name);
  if (it == tenants.named.end()) return {name};
  return {name, it->second.admin, it->second.quota};
}

}  // namespace

bool TenantFile::Version::operator==(const Version& other) const {
  return device == other.device && inode == other.inode && size == other.size &&
         modified.tv_sec == other.modified.tv_sec && modified.tv_nsec == other.modified.tv_nsec;
}

absl::StatusOr<std::shared_ptr<TenantFile>> TenantFile::Open(const std::string& path,
                                                             const Clock* clock) {
  std::shared_ptr<TenantFile> file(new TenantFile(path, clock));
  const absl::StatusOr<Version> version = file->Look();
  if (!version.ok()) return version.status();
  absl::StatusOr<access::Tenants> tenants = file->Read();
  if (!tenants.ok()) return tenants.status();
  MutexLock lock(&file->mutex_);
  file->tenants_ = std::make_shared<const access::Tenants>(*std::move(tenants));
  file->version_ = *version;
  file->looked_ = clock->Now();
  return file;
}

absl::StatusOr<TenantFile::Version> TenantFile::Look() const {
  struct stat status;
  if (stat(path_.c_str(), &status) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("'", path_, "': ", std::strerror(errno)));
  }
  return Version{status.st_dev, status.st_ino, status.st_size, status.st_mtim};
}

absl::StatusOr<access::Tenants> TenantFile::Read() const {
  std::ifstream file(path_, std::ios::binary);
  std::string text;
  std::getline(file, text, '\0');  // a directory is an error here, and not an exception
  if (file.bad() || !file.eof())
    return absl::InvalidArgumentError(absl::StrCat("'", path_, "' cannot be read"));
  absl::StatusOr<access::Tenants> tenants = access::Tenants::Parse(text);
  if (tenants.ok()) return tenants;
  return absl::InvalidArgumentError(absl::StrCat("'", path_, "', ", tenants.status().message()));
}

std::shared_ptr<const access::Tenants> TenantFile::Current() {
  MutexLock lock(&mutex_);
  const absl::Time now = clock_->Now();
  // A clock that was set back does not keep a revoked token alive.
  if (now < looked_ + kLookEvery && now >= looked_) return tenants_;
  looked_ = now;
  const absl::StatusOr<Version> version = Look();
  if (version.ok() && *version == version_) return tenants_;
  absl::StatusOr<access::Tenants> tenants = version.ok() ? Read() : version.status();
  if (tenants.ok()) {
    version_ = *version;
    tenants_ = std::make_shared<const access::Tenants>(*std::move(tenants));
    Log(LogLevel::kInfo, "tokens_read", {{"tokens", tenants_->tokens.size()}});
  } else {
    Log(LogLevel::kError, "tokens_not_read", {{"error", tenants.status().message()}});
  }
  return tenants_;
}

std::optional<Caller> TenantFile::Find(absl::string_view token) {
  const std::string digest = access::DigestOf(token);
  const std::shared_ptr<const access::Tenants> tenants = Current();
  // All are compared, and each to its end, so that the time tells nothing.
  const access::Token* found = nullptr;
  for (const access::Token& each : tenants->tokens) {
    if (CRYPTO_memcmp(each.digest.data(), digest.data(), digest.size()) == 0) found = &each;
  }
  if (found == nullptr) return std::nullopt;
  return CallerOf(*tenants, found->tenant);
}

Caller TenantFile::Named(const std::string& tenant) { return CallerOf(*Current(), tenant); }

}  // namespace nni_compression::server
