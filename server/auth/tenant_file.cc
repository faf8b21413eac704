#include "server/auth/tenant_file.h"

#include <map>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "server/access/tenants.h"
#include "server/base/log.h"
#include "server/base/mutex.h"
#include "server/platform/sha256.h"

namespace nni_compression::server {
namespace {

constexpr size_t kMaxTokenFileBytes = 64 << 20;  // about 800,000 tokens
constexpr char kTokenFileFlag[] = "token_file";

Caller CallerOf(const std::map<std::string, access::Tenant>& named, const std::string& name) {
  const auto it = named.find(name);
  if (it == named.end()) return {name};
  return {name, it->second.admin, it->second.quota};
}

}  // namespace

// The content of one version of the file.
struct TenantFile::Table {
  // By the digest of the token. The time of a lookup may leak something about digests, which helps
  // no attacker to find a token: a caller sends the token, not its digest.
  absl::flat_hash_map<std::string, Caller> callers;
  std::map<std::string, access::Tenant> named;
};

// The newest table, shared with the loader.
class TenantFile::Current {
 public:
  std::shared_ptr<const Table> Get() const {
    MutexLock lock(&mutex_);
    return table_;
  }
  void Set(std::shared_ptr<const Table> table) {
    MutexLock lock(&mutex_);
    table_.swap(table);
  }

 private:
  mutable Mutex mutex_;  // held only to copy or swap the pointer
  std::shared_ptr<const Table> table_ ABSL_GUARDED_BY(mutex_) = std::make_shared<const Table>();
};

absl::StatusOr<std::shared_ptr<TenantFile>> TenantFile::Open(const std::string& path) {
  auto current = std::make_shared<Current>();
  const auto load = [current, path](const std::vector<FileContents>& contents) {
    const absl::string_view text = contents[0].bytes;
    const auto wrong = [&](absl::string_view why) {
      return absl::InvalidArgumentError(absl::StrCat(kTokenFileFlag, " '", path, "', ", why));
    };
    // A full disk or an unfinished copy leaves an empty file.
    if (absl::StripAsciiWhitespace(text).empty() && !current->Get()->callers.empty()) {
      return wrong(
          "which had tokens, is empty; to revoke all, write a comment, such as `# nobody`");
    }
    absl::StatusOr<access::Tenants> tenants = access::Tenants::Parse(text);
    if (!tenants.ok()) return wrong(tenants.status().message());
    auto table = std::make_shared<Table>();
    table->named = std::move(tenants->named);
    for (access::Token& token : tenants->tokens) {
      table->callers.insert_or_assign(std::move(token.digest),
                                      CallerOf(table->named, token.tenant));
    }
    Log(LogLevel::kInfo, "tokens_read", {{"tokens", tenants->tokens.size()}});
    current->Set(std::move(table));
    return absl::OkStatus();
  };
  auto watcher = FileWatcher::Open({"tokens", {{kTokenFileFlag, path}}, kMaxTokenFileBytes}, load);
  if (!watcher.ok()) return watcher.status();
  return std::shared_ptr<TenantFile>(new TenantFile(std::move(current), *std::move(watcher)));
}

std::optional<Caller> TenantFile::Find(absl::string_view token) const {
  const std::shared_ptr<const Table> table = current_->Get();
  const auto it = table->callers.find(Sha256(token));
  if (it == table->callers.end()) return std::nullopt;
  return it->second;
}

Caller TenantFile::Named(const std::string& tenant) const {
  return CallerOf(current_->Get()->named, tenant);
}

}  // namespace nni_compression::server
