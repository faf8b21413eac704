#include "server/token_authenticator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/sha.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "tests/testing/fake_clock.h"

namespace nni_compression::server {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string Line(const std::string& token, const std::string& tenant) {
  std::string digest(SHA256_DIGEST_LENGTH, '\0');
  SHA256(reinterpret_cast<const uint8_t*>(token.data()), token.size(),
         reinterpret_cast<uint8_t*>(digest.data()));
  return absl::StrCat(absl::BytesToHexString(digest), " ", tenant, "\n");
}

class TokenAuthenticatorTest : public ::testing::Test {
 protected:
  ~TokenAuthenticatorTest() override { std::filesystem::remove(path_); }

  // As an editor does: another file takes its place.
  void Write(const std::string& text) {
    std::ofstream(path_ + ".new") << text;
    std::filesystem::rename(path_ + ".new", path_);
  }

  std::string Refusal(const std::string& text) {
    Write(text);
    return std::string(TokenAuthenticator::Open(path_).status().message());
  }

  absl::StatusOr<std::string> Tenant(const Authenticator::Metadata& metadata) {
    return authenticator_->AuthenticateLocal(metadata);
  }

  const std::string path_ = absl::StrCat(::testing::TempDir(), "/tokens", getpid());
  testing::FakeClock clock_;
  std::shared_ptr<Authenticator> authenticator_;
};

TEST_F(TokenAuthenticatorTest, ATokenGivesItsTenant) {
  Write("# tokens\n\n" + Line("sesame", "a") + Line("two", "a") + Line("three", "team.b_2-x"));
  authenticator_ = *TokenAuthenticator::Open(path_, &clock_);
  EXPECT_EQ(*Tenant({{"authorization", "Bearer sesame"}}), "a");
  EXPECT_EQ(*Tenant({{"authorization", "bearer two"}}), "a");
  EXPECT_EQ(*Tenant({{"authorization", "Bearer three"}, {"nni-route", "x"}}), "team.b_2-x");
}

TEST_F(TokenAuthenticatorTest, NobodyElseIsLetIn) {
  Write(Line("sesame", "a") + Line("two", "b"));
  authenticator_ = *TokenAuthenticator::Open(path_, &clock_);
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
        {{"authorization", "Bearer " + Line("sesame", "a").substr(0, 64)}},
        {{"authorization", "Bearer sesame"}, {"authorization", "Bearer sesame"}},
        {{"authorization", "Bearer sesame"}, {"authorization", "Bearer two"}},
        {{"tenant", "a"}}}) {
    const auto tenant = Tenant(metadata);
    EXPECT_EQ(tenant.status().code(), absl::StatusCode::kUnauthenticated);
    EXPECT_THAT(std::string(tenant.status().message()), Not(HasSubstr("sesame")));
  }
}

TEST_F(TokenAuthenticatorTest, ChangesOfTheFileCount) {
  Write(Line("sesame", "a"));
  authenticator_ = *TokenAuthenticator::Open(path_, &clock_);
  Write(Line("two", "a"));
  EXPECT_TRUE(Tenant({{"authorization", "Bearer sesame"}}).ok()) << "it is looked at once a second";
  clock_.Advance(absl::Seconds(1));
  EXPECT_TRUE(Tenant({{"authorization", "Bearer two"}}).ok());
  EXPECT_FALSE(Tenant({{"authorization", "Bearer sesame"}}).ok());
}

TEST_F(TokenAuthenticatorTest, AFileThatCannotBeReadChangesNothing) {
  Write(Line("sesame", "a"));
  authenticator_ = *TokenAuthenticator::Open(path_, &clock_);
  Write(Line("two", "a") + "damaged\n");
  clock_.Advance(absl::Seconds(1));
  EXPECT_TRUE(Tenant({{"authorization", "Bearer sesame"}}).ok());
  EXPECT_FALSE(Tenant({{"authorization", "Bearer two"}}).ok());
  std::filesystem::remove(path_);
  clock_.Advance(absl::Seconds(1));
  EXPECT_TRUE(Tenant({{"authorization", "Bearer sesame"}}).ok());
  Write(Line("two", "a"));
  clock_.Advance(absl::Seconds(-1));
  EXPECT_TRUE(Tenant({{"authorization", "Bearer two"}}).ok()) << "whatever the clock does";
}

TEST_F(TokenAuthenticatorTest, AFileThatIsNoneIsRefusedWithoutWhatIsInIt) {
  EXPECT_THAT(Refusal(Line("sesame", "a") + "secret tenant\n"), HasSubstr("line 2"));
  EXPECT_THAT(Refusal("secret tenant\n"), Not(HasSubstr("secret")));
  EXPECT_THAT(Refusal(Line("sesame", "")), HasSubstr("line 1"));
  EXPECT_THAT(Refusal(Line("sesame", "two words")), HasSubstr("line 1"));
  EXPECT_THAT(Refusal(Line("sesame", "slash/")), HasSubstr("line 1"));
  EXPECT_THAT(Refusal(Line("sesame", std::string(65, 'a'))), HasSubstr("line 1"));
  EXPECT_THAT(Refusal(std::string(64, 'g') + " a\n"), HasSubstr("line 1"));
  std::filesystem::remove(path_);
  EXPECT_THAT(std::string(TokenAuthenticator::Open(path_).status().message()), HasSubstr(path_));
}

}  // namespace
}  // namespace nni_compression::server
