#include "server/access/tenants.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "server/access/bytes.h"
#include "server/platform/sha256.h"

namespace nni_compression::access {
namespace {

constexpr size_t kMaxNameBytes = 128;

using Words = std::vector<absl::string_view>;

bool IsDigest(absl::string_view word) {
  return word.size() == 2 * server::kSha256Bytes &&
         std::all_of(word.begin(), word.end(),
                     [](char c) { return absl::ascii_isxdigit(static_cast<unsigned char>(c)); });
}

absl::Status ReadTenant(const Words& words, std::map<std::string, Tenant>* named) {
  const std::string name(words[1]);
  Tenant tenant;
  for (const absl::string_view word : absl::MakeConstSpan(words).subspan(2)) {
    if (word == "admin") {
      tenant.admin = true;
    } else if (absl::Status status = ReadLimit(word, &tenant.quota); !status.ok()) {
      return status;
    }
  }
  if (named->emplace(name, tenant).second) return absl::OkStatus();
  return absl::InvalidArgumentError("the tenant has a line already");
}

absl::Status ReadLine(const Words& words, Tenants* tenants) {
  if (words.size() >= 2 && IsTenantName(words[1])) {
    if (words[0] == kTenantWord) return ReadTenant(words, &tenants->named);
    if (words.size() == 2 && IsDigest(words[0])) {
      tenants->tokens.push_back({absl::HexStringToBytes(words[0]), std::string(words[1])});
      return absl::OkStatus();
    }
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "it must be a SHA-256 in 64 hexadecimal digits, or `tenant`, and a tenant's name: ",
      kTenantNameRule));
}

}  // namespace

absl::StatusOr<Tenants> Tenants::Parse(absl::string_view text) {
  Tenants tenants;
  int number = 0;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    const Words words = WordsOf(line);
    if (words.empty()) continue;
    if (absl::Status status = ReadLine(words, &tenants); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("line ", number, ": ", status.message()));
    }
  }
  return tenants;
}

std::vector<absl::string_view> WordsOf(absl::string_view line) {
  Words words = absl::StrSplit(line, absl::ByAnyChar(" \t\r"), absl::SkipEmpty());
  if (!words.empty() && words[0][0] == '#') words.clear();
  return words;
}

bool IsTenantName(absl::string_view name) {
  return !name.empty() && name.size() <= kMaxNameBytes &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
                  absl::StrContains("._-:/@", c);
         });
}

absl::Status ReadLimit(absl::string_view text, Quota* quota) {
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(text, absl::MaxSplits('=', 1));
  const auto* const limit =
      std::find_if(std::begin(kLimits), std::end(kLimits),
                   [&](const Limit& each) { return each.name == parts.first; });
  if (limit == std::end(kLimits)) {
    return absl::InvalidArgumentError(
        "a limit must be sessions=N, memory=BYTES, disk=BYTES, calls=N or uploads=N, with `none` "
        "for no limit");
  }
  if (parts.second == "none") {
    (quota->*limit->value).reset();
    return absl::OkStatus();
  }
  absl::StatusOr<int64_t> value = absl::InvalidArgumentError("");
  if (limit->in_bytes) value = ParseBytes(parts.second);
  int64_t number = 0;
  if (!limit->in_bytes && absl::SimpleAtoi(parts.second, &number) && number >= 0) value = number;
  if (!value.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(parts.first, " must be `none` or a number, at least 0",
                     limit->in_bytes ? ", of bytes, like 1000000, 512K, 64M or 4G" : ""));
  }
  quota->*limit->value = *value;
  return absl::OkStatus();
}

std::string ToText(const Quota& quota) {
  std::vector<std::string> limits;
  for (const Limit& limit : kLimits) {
    const std::optional<int64_t>& value = quota.*limit.value;
    if (value) limits.push_back(absl::StrCat(limit.name, "=", *value));
  }
  return absl::StrJoin(limits, " ");
}

}  // namespace nni_compression::access
