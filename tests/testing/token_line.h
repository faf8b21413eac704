// A line of the file of tenants.
#ifndef NNI_COMPRESSION_TESTS_TESTING_TOKEN_LINE_H_
#define NNI_COMPRESSION_TESTS_TESTING_TOKEN_LINE_H_

#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "server/platform/sha256.h"

namespace nni_compression::testing {

// With the digest of the tenant's token.
inline std::string TokenLine(const std::string& token, const std::string& tenant) {
  return absl::StrCat(absl::BytesToHexString(server::Sha256(token)), " ", tenant, "\n");
}

}  // namespace nni_compression::testing

#endif  // NNI_COMPRESSION_TESTS_TESTING_TOKEN_LINE_H_
