#include "server/sessions/page_tokens.h"

#include <openssl/evp.h>
#include <sys/random.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "server/platform/sha256.h"

namespace nni_compression::server {
namespace {

// Half of a block is the position, the other half identifies the reader.
constexpr size_t kHalf = 8;

std::array<uint8_t, kHalf> Mark(std::optional<absl::string_view> reader) {
  const std::string digest = Sha256(reader ? absl::StrCat("tenant ", *reader) : "operator");
  std::array<uint8_t, kHalf> mark;
  std::memcpy(mark.data(), digest.data(), mark.size());
  return mark;
}

}  // namespace

PageTokens::PageTokens() {
  if (getrandom(key_.data(), key_.size(), 0) != static_cast<ssize_t>(key_.size())) std::abort();
}

PageTokens::Block PageTokens::Crypt(const Block& block, bool encrypt) const {
  const std::unique_ptr<EVP_CIPHER_CTX, void (*)(EVP_CIPHER_CTX*)> context(EVP_CIPHER_CTX_new(),
                                                                           EVP_CIPHER_CTX_free);
  Block out = {};
  int size = 0;
  EVP_CipherInit_ex(context.get(), EVP_aes_128_ecb(), nullptr, key_.data(), nullptr,
                    encrypt ? 1 : 0);
  EVP_CIPHER_CTX_set_padding(context.get(), 0);
  EVP_CipherUpdate(context.get(), out.data(), &size, block.data(), static_cast<int>(block.size()));
  return out;
}

std::string PageTokens::Seal(std::optional<absl::string_view> reader, uint64_t place) const {
  Block block;
  std::memcpy(block.data(), &place, kHalf);
  const auto mark = Mark(reader);
  std::copy(mark.begin(), mark.end(), block.begin() + kHalf);
  const Block sealed = Crypt(block, /*encrypt=*/true);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(sealed.data()), sealed.size()));
}

std::optional<uint64_t> PageTokens::Open(std::optional<absl::string_view> reader,
                                         absl::string_view token) const {
  Block sealed;
  if (token.size() != 2 * sealed.size()) return std::nullopt;
  // Other characters than hexadecimal digits would be undefined behaviour there.
  if (!std::all_of(token.begin(), token.end(), absl::ascii_isxdigit)) return std::nullopt;
  const std::string bytes = absl::HexStringToBytes(token);
  std::memcpy(sealed.data(), bytes.data(), sealed.size());
  const Block block = Crypt(sealed, /*encrypt=*/false);
  const auto mark = Mark(reader);
  if (!std::equal(mark.begin(), mark.end(), block.begin() + kHalf)) return std::nullopt;
  uint64_t place = 0;
  std::memcpy(&place, block.data(), kHalf);
  return place;
}

}  // namespace nni_compression::server
