#include "server/access/tenant_editor.h"

#include <fcntl.h>
#include <openssl/rand.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <set>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/functional/function_ref.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "server/platform/sha256.h"

namespace nni_compression::access {
namespace {

constexpr int kTokenBytes = 32;

using Lines = std::vector<std::string>;

absl::Status Failed(absl::string_view what, const std::string& path) {
  return absl::UnavailableError(
      absl::StrCat("cannot ", what, " '", path, "': ", std::strerror(errno)));
}

absl::Status CheckName(absl::string_view tenant) {
  if (IsTenantName(tenant)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "tenant is '", absl::CEscape(tenant.substr(0, 200)), "'; it must be ", kTenantNameRule));
}

absl::StatusOr<Tenants> Parsed(absl::string_view text, const std::string& path) {
  absl::StatusOr<Tenants> tenants = Tenants::Parse(text);
  if (tenants.ok()) return tenants;
  return absl::InvalidArgumentError(absl::StrCat("'", path, "', ", tenants.status().message()));
}

// nullopt when there is no file.
absl::StatusOr<std::optional<std::string>> ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file && errno == ENOENT) return std::nullopt;
  std::string text;
  std::getline(file, text, '\0');  // a directory is an error here, and not an exception
  if (file.bad() || !file.eof()) return Failed("read", path);
  return text;
}

// A file that root makes in another user's folder, such as the server's, gets that user as owner.
absl::Status GiveToOwnerOf(const std::string& folder, int fd, const std::string& path) {
  struct stat owner;
  if (geteuid() != 0 || stat(folder.c_str(), &owner) != 0) return absl::OkStatus();
  return fchown(fd, owner.st_uid, owner.st_gid) == 0 ? absl::OkStatus()
                                                     : Failed("set the owner of", path);
}

std::string FolderOf(const std::string& path) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  return folder.empty() ? "." : folder.string();
}

absl::Status SyncFolder(const std::string& folder) {
  const int fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  const auto closer = absl::MakeCleanup([fd] { close(fd); });
  return fd >= 0 && fsync(fd) == 0 ? absl::OkStatus() : Failed("sync", folder);
}

// The new file is as private as the old one.
absl::Status Replace(const std::string& path, const std::string& text) {
  const std::string temporary = path + ".unfinished";
  unlink(temporary.c_str());  // left by an editor that died; the lock excludes running ones
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) return Failed("create", temporary);
  auto remover = absl::MakeCleanup([&] { unlink(temporary.c_str()); });
  const auto closer = absl::MakeCleanup([fd] { close(fd); });
  struct stat old;
  if (stat(path.c_str(), &old) == 0) {
    if (fchmod(fd, old.st_mode & 07777) != 0) return Failed("set the mode of", temporary);
    // Root may be editing the file of the server's user.
    if ((old.st_uid != geteuid() || old.st_gid != getegid()) &&
        fchown(fd, old.st_uid, old.st_gid) != 0) {
      return Failed("set the owner of", temporary);
    }
  } else if (absl::Status status = GiveToOwnerOf(FolderOf(path), fd, temporary); !status.ok()) {
    return status;
  }
  for (size_t done = 0; done < text.size();) {
    const ssize_t written = write(fd, text.data() + done, text.size() - done);
    if (written < 0 && errno != EINTR) return Failed("write", temporary);
    done += static_cast<size_t>(std::max<ssize_t>(written, 0));
  }
  if (fsync(fd) != 0 || std::rename(temporary.c_str(), path.c_str()) != 0) {
    return Failed("write", path);
  }
  std::move(remover).Cancel();
  return SyncFolder(FolderOf(path));
}

absl::Status Edit(const std::string& path, bool make,
                  absl::FunctionRef<absl::Status(Lines& lines, const Tenants& now)> change) {
  const std::string lock = path + ".lock";
  const int fd = open(lock.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
  const auto closer = absl::MakeCleanup([fd] { close(fd); });
  if (fd < 0 || flock(fd, LOCK_EX) != 0) return Failed("lock", lock);
  if (absl::Status status = GiveToOwnerOf(FolderOf(path), fd, lock); !status.ok()) return status;
  // A symbolic link stays; its target is replaced.
  std::error_code error;
  const std::filesystem::path resolved = std::filesystem::canonical(path, error);
  const std::string target = error ? path : resolved.string();
  absl::StatusOr<std::optional<std::string>> text = ReadText(target);
  if (!text.ok()) return text.status();
  if (!*text && !make) return absl::InvalidArgumentError(absl::StrCat("there is no '", path, "'"));
  const absl::StatusOr<Tenants> now = Parsed(text->value_or(""), path);
  if (!now.ok()) return now.status();
  Lines lines = absl::StrSplit(absl::StripTrailingAsciiWhitespace(text->value_or("")), '\n');
  if (lines.size() == 1 && lines[0].empty()) lines.clear();
  if (absl::Status status = change(lines, *now); !status.ok()) return status;
  // A server treats an empty file as damaged.
  if (lines.empty()) lines.emplace_back("# no tenants");
  return Replace(target, absl::StrJoin(lines, "\n") + "\n");
}

bool IsLineOf(absl::string_view line, absl::string_view tenant) {
  const std::vector<absl::string_view> words = WordsOf(line);
  return words.size() >= 2 && words[0] == kTenantWord && words[1] == tenant;
}

void SetTenant(const std::string& name, const Tenant& tenant, Lines* lines) {
  const std::string quota = ToText(tenant.quota);
  std::string line = absl::StrCat(kTenantWord, " ", name, tenant.admin ? " admin" : "",
                                  quota.empty() ? "" : " ", quota);
  const auto it = std::find_if(lines->begin(), lines->end(),
                               [&](const std::string& each) { return IsLineOf(each, name); });
  if (it != lines->end()) {
    *it = std::move(line);
  } else {
    lines->push_back(std::move(line));
  }
}

bool IsKnown(const Tenants& tenants, const std::string& name) {
  return tenants.named.count(name) > 0 ||
         std::any_of(tenants.tokens.begin(), tenants.tokens.end(),
                     [&](const Token& token) { return token.tenant == name; });
}

// For messages.
std::string KnownTenants(const Tenants& tenants) {
  constexpr size_t kMaxShown = 10;
  std::set<std::string> names;
  for (const auto& [name, tenant] : tenants.named) names.insert(name);
  for (const Token& token : tenants.tokens) names.insert(token.tenant);
  if (names.empty()) return ", which has none";
  const size_t more = names.size() - std::min(names.size(), kMaxShown);
  const std::vector<std::string> shown(names.begin(), std::prev(names.end(), more));
  return absl::StrCat(", which has ", absl::StrJoin(shown, ", "),
                      more == 0 ? "" : absl::StrCat(" and ", more, " more"));
}

Tenant Named(const Tenants& tenants, const std::string& name) {
  const auto it = tenants.named.find(name);
  return it == tenants.named.end() ? Tenant() : it->second;
}

}  // namespace

absl::StatusOr<Tenants> TenantEditor::Read() const {
  const absl::StatusOr<std::optional<std::string>> text = ReadText(path_);
  if (!text.ok()) return text.status();
  if (!*text) return absl::InvalidArgumentError(absl::StrCat("there is no '", path_, "'"));
  return Parsed(**text, path_);
}

absl::StatusOr<std::string> TenantEditor::Add(absl::string_view tenant, bool admin) const {
  if (absl::Status status = CheckName(tenant); !status.ok()) return status;
  unsigned char random[kTokenBytes];
  if (RAND_bytes(random, sizeof(random)) != 1) {
    return absl::InternalError("the system has no random numbers");
  }
  const std::string name(tenant);
  const std::string token = absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(random), sizeof(random)));
  const absl::Status status = Edit(path_, /*make=*/true, [&](Lines& lines, const Tenants& now) {
    Tenant entry = Named(now, name);
    if (admin && !entry.admin) {
      entry.admin = true;
      SetTenant(name, entry, &lines);
    }
    lines.push_back(absl::StrCat(absl::BytesToHexString(server::Sha256(token)), " ", name));
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  return token;
}

absl::StatusOr<int> TenantEditor::Revoke(absl::string_view tenant,
                                         absl::string_view digest_prefix) const {
  if (absl::Status status = CheckName(tenant); !status.ok()) return status;
  int revoked = 0;
  const auto change = [&](Lines& lines, const Tenants& now) -> absl::Status {
    const auto is_revoked = [&](const std::string& line) {
      const std::vector<absl::string_view> words = WordsOf(line);
      return words.size() == 2 && words[0] != kTenantWord && words[1] == tenant &&
             absl::StartsWithIgnoreCase(words[0], digest_prefix);
    };
    std::set<std::string> digests;
    for (const std::string& line : lines) {
      if (is_revoked(line)) digests.insert(absl::AsciiStrToLower(WordsOf(line)[0]));
    }
    if (!digest_prefix.empty() && digests.size() > 1) {
      return absl::InvalidArgumentError(absl::StrCat("token_id '", digest_prefix, "' stands for ",
                                                     digests.size(), " tokens of tenant '", tenant,
                                                     "'; it must have more digits"));
    }
    const auto tokens = std::remove_if(lines.begin(), lines.end(), is_revoked);
    revoked = static_cast<int>(lines.end() - tokens);
    lines.erase(tokens, lines.end());
    if (revoked == 0 && !(digest_prefix.empty() && now.named.count(std::string(tenant)) > 0)) {
      return absl::NotFoundError(absl::StrCat("tenant '", tenant, "' has no ",
                                              digest_prefix.empty() ? "" : "such ", "token in '",
                                              path_, "'"));
    }
    const auto all = std::count_if(now.tokens.begin(), now.tokens.end(),
                                   [&](const Token& token) { return token.tenant == tenant; });
    if (all > revoked) return absl::OkStatus();
    const auto own = std::remove_if(lines.begin(), lines.end(), [&](const std::string& line) {
      return IsLineOf(line, tenant);
    });
    lines.erase(own, lines.end());
    return absl::OkStatus();
  };
  if (absl::Status status = Edit(path_, /*make=*/false, change); !status.ok()) return status;
  return revoked;
}

absl::StatusOr<Quota> TenantEditor::SetQuota(absl::string_view tenant,
                                             absl::Span<const std::string> limits,
                                             bool without_token) const {
  if (absl::Status status = CheckName(tenant); !status.ok()) return status;
  Tenant entry;
  const auto change = [&](Lines& lines, const Tenants& now) -> absl::Status {
    const std::string name(tenant);
    if (!without_token && !IsKnown(now, name)) {
      return absl::NotFoundError(absl::StrCat(
          "there is no tenant '", name, "' in '", path_, "'", KnownTenants(now), ". `tenant add ",
          name, "` makes one with a token; --without_token is for the name in a certificate"));
    }
    entry = Named(now, name);
    for (const std::string& limit : limits) {
      if (absl::Status status = ReadLimit(limit, &entry.quota); !status.ok()) return status;
    }
    SetTenant(name, entry, &lines);
    return absl::OkStatus();
  };
  if (absl::Status status = Edit(path_, /*make=*/true, change); !status.ok()) return status;
  return entry.quota;
}

}  // namespace nni_compression::access
