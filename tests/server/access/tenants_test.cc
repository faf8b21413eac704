#include "server/access/tenants.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "server/platform/sha256.h"

namespace nni_compression::access {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string Line(const std::string& token, const std::string& tenant) {
  return absl::StrCat(absl::BytesToHexString(server::Sha256(token)), " ", tenant, "\n");
}

TEST(TenantsTest, ATextHasTokensAndWhatTenantsMay) {
  const Tenants tenants = *Tenants::Parse(
      "# a remark\n\n" + Line("t", "a") + "tenant ops admin\r\n" +
      "\ttenant a uploads=5 sessions=3 memory=2G disk=1G calls=7\n" + Line("u", "ops"));
  ASSERT_EQ(tenants.tokens.size(), 2u);
  EXPECT_EQ(tenants.tokens[0].tenant, "a");
  EXPECT_EQ(tenants.tokens[0].digest, server::Sha256("t"));
  EXPECT_TRUE(tenants.named.at("ops").admin);
  const Tenant& a = tenants.named.at("a");
  EXPECT_FALSE(a.admin);
  EXPECT_EQ(ToText(a.quota), "sessions=3 memory=2147483648 disk=1073741824 calls=7 uploads=5");
}

TEST(TenantsTest, ATextThatIsNoneIsRefusedByLine) {
  const std::string digest = Line("t", "a").substr(0, 64);
  for (const std::string& bad :
       {std::string("secret a"), digest, digest + " two words", digest + " semi;colon",
        digest + " " + std::string(129, 'a'), std::string(64, 'g') + " a", digest.substr(1) + " a",
        std::string("tenant"), std::string("tenant a b"), std::string("tenant a calls=x"),
        std::string("tenant a calls=-1"), std::string("tenant a calls"),
        std::string("tenant a rows=1"), std::string("tenant a memory=2X"),
        std::string("tenant a disk=much"), std::string("tenant a uploads=1K"),
        std::string("tenant a\ntenant a")}) {
    const absl::Status status = Tenants::Parse("# first\n" + bad + "\n").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(status.message()), HasSubstr("line ")) << bad;
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("secret")));
  }
}

TEST(TenantsTest, LimitsAreReadOneByOne) {
  Quota quota;
  EXPECT_TRUE(ReadLimit("sessions=0", &quota).ok());
  EXPECT_TRUE(ReadLimit("memory=512K", &quota).ok());
  EXPECT_EQ(ToText(quota), "sessions=0 memory=524288");
  EXPECT_TRUE(ReadLimit("sessions=none", &quota).ok());
  EXPECT_EQ(ToText(quota), "memory=524288");
  EXPECT_THAT(std::string(ReadLimit("calls=many", &quota).message()),
              HasSubstr("calls must be `none` or a number, at least 0"));
}

}  // namespace
}  // namespace nni_compression::access
