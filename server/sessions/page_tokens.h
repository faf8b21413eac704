// Where a listing goes on, in a form that tells its reader nothing.
#ifndef NNI_COMPRESSION_SERVER_SESSIONS_PAGE_TOKENS_H_
#define NNI_COMPRESSION_SERVER_SESSIONS_PAGE_TOKENS_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace nni_compression::server {

// Turns a session's place among those of all tenants into a token and back. The token is one block
// of AES-128 under a key that this object made up: whoever holds it learns neither how many
// sessions there are nor when those of others were opened, cannot make one up, and cannot use one
// that another reader was given. Tokens do not outlive the process. Thread-safe.
class PageTokens {
 public:
  // Aborts when the system has no random numbers.
  PageTokens();

  // `reader` is who lists: a tenant, or nullopt for an operator, who sees all of them.
  std::string Seal(std::optional<absl::string_view> reader, uint64_t place) const;

  // nullopt for what is not a token of this reader.
  std::optional<uint64_t> Open(std::optional<absl::string_view> reader,
                               absl::string_view token) const;

 private:
  using Block = std::array<uint8_t, 16>;

  Block Crypt(const Block& block, bool encrypt) const;

  Block key_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_SESSIONS_PAGE_TOKENS_H_
