// Opaque page tokens of listings.
#ifndef NNI_COMPRESSION_SERVER_SESSIONS_PAGE_TOKENS_H_
#define NNI_COMPRESSION_SERVER_SESSIONS_PAGE_TOKENS_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace nni_compression::server {

// Encrypts a session's sequence number, which counts the sessions of all tenants. A token is one
// block of AES-128 under a random key of this object: its holder learns neither how many sessions
// there are nor when those of others were opened, and can neither forge a token nor use that of
// another reader. Tokens do not outlive the process. Thread-safe.
class PageTokens {
 public:
  // Aborts when the system has no random numbers.
  PageTokens();

  // `reader` is the tenant that lists; nullopt for an operator, who sees all of them.
  std::string Seal(std::optional<absl::string_view> reader, uint64_t place) const;

  // nullopt unless it is a token of this reader.
  std::optional<uint64_t> Open(std::optional<absl::string_view> reader,
                               absl::string_view token) const;

 private:
  using Block = std::array<uint8_t, 16>;

  Block Crypt(const Block& block, bool encrypt) const;

  Block key_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_SESSIONS_PAGE_TOKENS_H_
