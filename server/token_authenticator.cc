#include "server/token_authenticator.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "server/log.h"
#include "server/sha256.h"

namespace nni_compression::server {
namespace {

constexpr char kKey[] = "authorization";
constexpr char kScheme[] = "Bearer ";
constexpr absl::Duration kLookEvery = absl::Seconds(1);
constexpr size_t kMaxTenantBytes = 64;

bool IsTenant(absl::string_view name) {
  return !name.empty() && name.size() <= kMaxTenantBytes &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return absl::ascii_isalnum(static_cast<unsigned char>(c)) || absl::StrContains("._-", c);
         });
}

absl::Status Refused(absl::string_view why) {
  return absl::UnauthenticatedError(
      absl::StrCat(why,
                   "; the server asks for `authorization: Bearer TOKEN`, which clients send "
                   "for $NNI_COMPRESSION_TOKEN_FILE"));
}

// One value of the key; a second one may be there to hide the first from a proxy.
template <typename Entries>
absl::StatusOr<absl::string_view> Authorization(const Entries& metadata) {
  const auto [first, last] = metadata.equal_range(kKey);
  if (first == last) return Refused("the call has no token");
  if (std::next(first) != last) return Refused("the call has more than one token");
  return absl::string_view(first->second.data(), first->second.size());
}

}  // namespace

bool TokenAuthenticator::Version::operator==(const Version& other) const {
  return device == other.device && inode == other.inode && size == other.size &&
         modified.tv_sec == other.modified.tv_sec && modified.tv_nsec == other.modified.tv_nsec;
}

absl::StatusOr<std::shared_ptr<Authenticator>> TokenAuthenticator::Open(const std::string& path,
                                                                        const Clock* clock) {
  std::shared_ptr<TokenAuthenticator> authenticator(new TokenAuthenticator(path, clock));
  const absl::StatusOr<Version> version = authenticator->Look();
  if (!version.ok()) return version.status();
  absl::StatusOr<Tokens> tokens = authenticator->Read();
  if (!tokens.ok()) return tokens.status();
  MutexLock lock(&authenticator->mutex_);
  authenticator->tokens_ = std::make_shared<const Tokens>(*std::move(tokens));
  authenticator->version_ = *version;
  authenticator->looked_ = clock->Now();
  return authenticator;
}

absl::StatusOr<TokenAuthenticator::Version> TokenAuthenticator::Look() const {
  struct stat status;
  if (stat(path_.c_str(), &status) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("'", path_, "': ", std::strerror(errno)));
  }
  return Version{status.st_dev, status.st_ino, status.st_size, status.st_mtim};
}

absl::StatusOr<TokenAuthenticator::Tokens> TokenAuthenticator::Read() const {
  std::ifstream file(path_);
  Tokens tokens;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    const std::vector<absl::string_view> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t\r"), absl::SkipEmpty());
    if (words.empty() || words[0][0] == '#') continue;
    const bool hexadecimal = words[0].size() == 2 * SHA256_DIGEST_LENGTH &&
                             std::all_of(words[0].begin(), words[0].end(), [](char c) {
                               return absl::ascii_isxdigit(static_cast<unsigned char>(c));
                             });
    if (words.size() != 2 || !hexadecimal || !IsTenant(words[1])) {
      // Not the line itself: somebody may have put a token there.
      return absl::InvalidArgumentError(
          absl::StrCat("'", path_, "', line ", number,
                       ": it must be a SHA-256 in 64 hexadecimal digits and a tenant of up to ",
                       kMaxTenantBytes, " letters, digits, '.', '_' and '-'"));
    }
    Token& token = tokens.emplace_back();
    token.digest = absl::HexStringToBytes(words[0]);
    token.tenant = std::string(words[1]);
  }
  if (file.bad() || !file.eof()) {
    return absl::InvalidArgumentError(absl::StrCat("'", path_, "' cannot be read"));
  }
  return tokens;
}

std::shared_ptr<const TokenAuthenticator::Tokens> TokenAuthenticator::Current() {
  MutexLock lock(&mutex_);
  const absl::Time now = clock_->Now();
  // A clock that was set back does not keep a revoked token alive.
  if (now < looked_ + kLookEvery && now >= looked_) return tokens_;
  looked_ = now;
  const absl::StatusOr<Version> version = Look();
  if (version.ok() && *version == version_) return tokens_;
  absl::StatusOr<Tokens> tokens = version.ok() ? Read() : version.status();
  if (tokens.ok()) {
    version_ = *version;
    tokens_ = std::make_shared<const Tokens>(*std::move(tokens));
    Log(LogLevel::kInfo, "tokens_read", {{"tokens", tokens_->size()}});
  } else {
    Log(LogLevel::kError, "tokens_not_read", {{"error", tokens.status().message()}});
  }
  return tokens_;
}

absl::StatusOr<std::string> TokenAuthenticator::TenantOf(absl::string_view authorization) {
  if (!absl::StartsWithIgnoreCase(authorization, kScheme)) {
    return Refused("the call's authorization is no bearer token");
  }
  const absl::string_view secret =
      absl::StripAsciiWhitespace(authorization.substr(sizeof(kScheme) - 1));
  const std::string digest = Sha256(secret);
  // All are compared, and each to its end, so that the time tells nothing.
  const std::shared_ptr<const Tokens> tokens = Current();
  const Token* found = nullptr;
  for (const Token& token : *tokens) {
    if (CRYPTO_memcmp(token.digest.data(), digest.data(), digest.size()) == 0) found = &token;
  }
  if (found == nullptr) return Refused("the call's token is not valid");
  return found->tenant;
}

absl::StatusOr<std::string> TokenAuthenticator::Authenticate(const grpc::ServerContextBase& context,
                                                             absl::string_view /*method*/) {
  const absl::StatusOr<absl::string_view> value = Authorization(context.client_metadata());
  if (!value.ok()) return value.status();
  return TenantOf(*value);
}

absl::StatusOr<std::string> TokenAuthenticator::AuthenticateLocal(const Metadata& metadata) {
  const absl::StatusOr<absl::string_view> value = Authorization(metadata);
  if (!value.ok()) return value.status();
  return TenantOf(*value);
}

}  // namespace nni_compression::server
