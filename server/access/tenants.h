// Who may call a server: the file of tenants, as the server reads and compressionctl edits it.
#ifndef NNI_COMPRESSION_SERVER_ACCESS_TENANTS_H_
#define NNI_COMPRESSION_SERVER_ACCESS_TENANTS_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace nni_compression::access {

// What a tenant may have at a time. Unset: as much as the server has.
struct Quota {
  std::optional<int64_t> sessions;  // that live
  std::optional<int64_t> memory;    // bytes, of tensors under way and of sessions' states
  std::optional<int64_t> disk;      // bytes that live sessions may come to take in storage
  std::optional<int64_t> calls;     // under way
  std::optional<int64_t> uploads;   // tensors a second
};

// The limits by name, in the order in which they are shown.
struct Limit {
  absl::string_view name;
  std::optional<int64_t> Quota::*value;
  bool in_bytes;
};
inline constexpr Limit kLimits[] = {{"sessions", &Quota::sessions, false},
                                    {"memory", &Quota::memory, true},
                                    {"disk", &Quota::disk, true},
                                    {"calls", &Quota::calls, false},
                                    {"uploads", &Quota::uploads, false}};

struct Tenant {
  bool admin = false;  // an operator, who sees and may close the sessions of all tenants
  Quota quota;
};

struct Token {
  std::string digest;  // the token's SHA-256, 32 bytes
  std::string tenant;
};

// A text of lines: `SHA256 TENANT` for each token, its SHA-256 in hexadecimal digits, and
// `tenant TENANT [admin] [LIMIT...]`, where limits are as ReadLimit takes them, for a tenant that
// is more than a name. Empty lines and those that begin with '#' are remarks. A tenant may have
// several tokens. The tokens have to be random (256 bits): their hashes are not salted.
struct Tenants {
  std::vector<Token> tokens;
  std::map<std::string, Tenant> named;  // those with a line of their own

  // INVALID_ARGUMENT that names the line, but shows nothing of it: somebody may have put a token
  // there.
  static absl::StatusOr<Tenants> Parse(absl::string_view text);
};

// The first word of a line about a tenant.
inline constexpr absl::string_view kTenantWord = "tenant";

// None for a remark.
std::vector<absl::string_view> WordsOf(absl::string_view line);

// Up to 128 letters, digits and any of `._-:/@`, so that the names in certificates are some.
bool IsTenantName(absl::string_view name);
inline constexpr absl::string_view kTenantNameRule =
    "1 to 128 letters, digits, '.', '_', '-', ':', '/' and '@'";

// Reads NAME=N, for a number of bytes with an optional suffix K, M or G, into `quota`; `none` in
// place of the number takes the limit away.
absl::Status ReadLimit(absl::string_view text, Quota* quota);

// As the file has it: "sessions=3 calls=10". Empty for none.
std::string ToText(const Quota& quota);

}  // namespace nni_compression::access

#endif  // NNI_COMPRESSION_SERVER_ACCESS_TENANTS_H_
