#include "server/platform/sha256.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/strings/escaping.h"

namespace nni_compression::server {
namespace {

// FIPS 180-2, appendix B.
TEST(Sha256Test, IsThatOfTheStandard) {
  EXPECT_EQ(absl::BytesToHexString(Sha256("abc")),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(absl::BytesToHexString(Sha256("")),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sha256("").size(), kSha256Bytes);
}

TEST(Sha256Test, IsTheSameOfBytesInParts) {
  Sha256Hasher hasher;
  hasher.Add("a", 1);
  hasher.Add("", 0);
  hasher.Add("bc", 2);
  EXPECT_EQ(hasher.Finish(), Sha256("abc"));
}

}  // namespace
}  // namespace nni_compression::server
