// Authentication and quotas: the tenant file, which the server reads and compressionctl edits.
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

// The limits of one tenant. A limit that is unset is the server's.
struct Quota {
  std::optional<int64_t> sessions;  // live sessions
  std::optional<int64_t> memory;    // bytes of tensors in flight and of session states
  std::optional<int64_t> disk;      // bytes that live sessions may use in storage
  std::optional<int64_t> calls;     // concurrent calls
  std::optional<int64_t> uploads;   // tensors per second
};

// The limits by name, in display order.
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
  bool admin = false;  // an operator: may list and close the sessions of all tenants
  Quota quota;
};

struct Token {
  std::string digest;  // the token's SHA-256, 32 bytes
  std::string tenant;
};

// A text file with two kinds of lines: `SHA256 TENANT` for each token, with its SHA-256 in
// hexadecimal digits, and `tenant TENANT [admin] [LIMIT...]` for a tenant with a role or limits,
// which are in the syntax of ReadLimit. Empty lines and those that begin with '#' are comments. A
// tenant may have several tokens. Tokens must be random (256 bits): their hashes are not salted.
struct Tenants {
  std::vector<Token> tokens;
  std::map<std::string, Tenant> named;  // those with a line of their own

  // INVALID_ARGUMENT with the line's number but not its content, which may be a plain token.
  static absl::StatusOr<Tenants> Parse(absl::string_view text);
};

// The first word of a line about a tenant.
inline constexpr absl::string_view kTenantWord = "tenant";

// Returns the words of a line; empty for a comment.
std::vector<absl::string_view> WordsOf(absl::string_view line);

// Whether a name is 1 to 128 letters, digits and any of `._-:/@`, which names in certificates need.
bool IsTenantName(absl::string_view name);
inline constexpr absl::string_view kTenantNameRule =
    "1 to 128 letters, digits, '.', '_', '-', ':', '/' and '@'";

// Reads NAME=N into `quota`; numbers of bytes may have a suffix K, M or G. `none` instead of a
// number removes the limit.
absl::Status ReadLimit(absl::string_view text, Quota* quota);

// In the syntax of the file: "sessions=3 calls=10". Empty when there are no limits.
std::string ToText(const Quota& quota);

}  // namespace nni_compression::access

#endif  // NNI_COMPRESSION_SERVER_ACCESS_TENANTS_H_
