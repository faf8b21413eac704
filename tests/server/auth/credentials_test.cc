// Tokens; what needs a connection is in tests/integration/access/test_access.py.
#include "server/auth/credentials.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/testing/token_line.h"

namespace nni_compression::server {
namespace {

using nni_compression::testing::TokenLine;
using ::testing::HasSubstr;
using ::testing::Not;

class AccessTest : public ::testing::Test {
 protected:
  AccessTest() {
    std::ofstream(path_) << "# tokens\n\n"
                         << TokenLine("sesame", "a") << TokenLine("two", "a")
                         << TokenLine("three", "team.b_2-x");
    access_ = std::make_unique<Access>(AccessOptions{*TenantFile::Open(path_), false, {}});
  }
  ~AccessTest() override { std::filesystem::remove(path_); }

  const std::string path_ = absl::StrCat(::testing::TempDir(), "/access", getpid());
  std::unique_ptr<Access> access_;
};

TEST_F(AccessTest, ATokenGivesItsTenant) {
  EXPECT_EQ(access_->AuthenticateLocal({{"authorization", "Bearer sesame"}})->tenant, "a");
  EXPECT_EQ(access_->AuthenticateLocal({{"authorization", "bearer two"}})->tenant, "a");
  EXPECT_EQ(
      access_->AuthenticateLocal({{"authorization", "Bearer three"}, {"nni-route", "x"}})->tenant,
      "team.b_2-x");
}

TEST_F(AccessTest, NobodyElseIsLetIn) {
  for (const Authenticator::Metadata& metadata :
       {Authenticator::Metadata{},
        {{"authorization", ""}},
        {{"authorization", "sesame"}},
        {{"authorization", "Basic one"}},
        {{"authorization", "Bearer "}},
        {{"authorization", "Bearer sesam"}},
        {{"authorization", "Bearer sesamee"}},
        {{"authorization", "Bearer sesame two"}},
        {{"authorization", std::string("Bearer sesame\0", 14)}},
        {{"authorization", "Bearer " + TokenLine("sesame", "a").substr(0, 64)}},
        {{"authorization", "Bearer sesame"}, {"authorization", "Bearer sesame"}},
        {{"authorization", "Bearer sesame"}, {"authorization", "Bearer two"}},
        {{"nni-client-name", "a"}},
        {{"tenant", "a"}}}) {
    const auto caller = access_->AuthenticateLocal(metadata);
    EXPECT_EQ(caller.status().code(), absl::StatusCode::kUnauthenticated);
    EXPECT_THAT(std::string(caller.status().message()), Not(HasSubstr("sesame")));
  }
}

}  // namespace
}  // namespace nni_compression::server
