#include "server/tenant_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/token_line.h"

namespace nni_compression::server {
namespace {

using nni_compression::testing::TokenLine;
using ::testing::HasSubstr;
using ::testing::Not;

class TenantFileTest : public ::testing::Test {
 protected:
  ~TenantFileTest() override { std::filesystem::remove(path_); }

  // As an editor does: another file takes its place.
  void Write(const std::string& text) {
    std::ofstream(path_ + ".new") << text;
    std::filesystem::rename(path_ + ".new", path_);
  }

  void Open(const std::string& text) {
    Write(text);
    file_ = *TenantFile::Open(path_, &clock_);
  }

  std::string Refusal(const std::string& text) {
    Write(text);
    return std::string(TenantFile::Open(path_).status().message());
  }

  const std::string path_ = absl::StrCat(::testing::TempDir(), "/tenants", getpid());
  testing::FakeClock clock_;
  std::shared_ptr<TenantFile> file_;
};

TEST_F(TenantFileTest, ATokenGivesItsTenantAndWhatItMay) {
  Open("tenant ops admin calls=3\n" + TokenLine("sesame", "a") + TokenLine("two", "a") +
       TokenLine("root", "ops"));
  EXPECT_EQ(file_->Find("sesame")->tenant, "a");
  EXPECT_EQ(file_->Find("two")->tenant, "a");
  EXPECT_FALSE(file_->Find("two")->admin);
  EXPECT_TRUE(file_->Find("root")->admin);
  EXPECT_EQ(file_->Find("root")->quota.calls, 3);
  EXPECT_FALSE(file_->Find("sesam"));
  EXPECT_FALSE(file_->Find(""));
  EXPECT_FALSE(file_->Find(TokenLine("sesame", "a").substr(0, 64))) << "a digest is no token";
}

TEST_F(TenantFileTest, NamesThatComeOtherwiseMayHaveLimitsToo) {
  Open("tenant spiffe://x/a sessions=2\n");
  EXPECT_EQ(file_->Named("spiffe://x/a").quota.sessions, 2);
  EXPECT_EQ(file_->Named("b").tenant, "b");
  EXPECT_FALSE(file_->Named("b").quota.sessions);
}

TEST_F(TenantFileTest, ChangesOfTheFileCount) {
  Open(TokenLine("sesame", "a"));
  Write(TokenLine("two", "a"));
  EXPECT_TRUE(file_->Find("sesame")) << "it is looked at once a second";
  clock_.Advance(absl::Seconds(1));
  EXPECT_TRUE(file_->Find("two"));
  EXPECT_FALSE(file_->Find("sesame"));
}

TEST_F(TenantFileTest, AFileThatCannotBeReadChangesNothing) {
  Open(TokenLine("sesame", "a"));
  Write(TokenLine("two", "a") + "damaged\n");
  clock_.Advance(absl::Seconds(1));
  EXPECT_TRUE(file_->Find("sesame"));
  EXPECT_FALSE(file_->Find("two"));
  std::filesystem::remove(path_);
  clock_.Advance(absl::Seconds(1));
  EXPECT_TRUE(file_->Find("sesame"));
  Write(TokenLine("two", "a"));
  clock_.Advance(absl::Seconds(-1));
  EXPECT_TRUE(file_->Find("two")) << "whatever the clock does";
}

TEST_F(TenantFileTest, AFileThatIsNoneIsRefusedWithoutWhatIsInIt) {
  EXPECT_THAT(Refusal(TokenLine("sesame", "a") + "secret tenant\n"), HasSubstr("line 2"));
  EXPECT_THAT(Refusal("secret tenant\n"), Not(HasSubstr("secret")));
  std::filesystem::remove(path_);
  EXPECT_THAT(std::string(TenantFile::Open(path_).status().message()), HasSubstr(path_));
  EXPECT_THAT(std::string(TenantFile::Open(::testing::TempDir()).status().message()),
              HasSubstr("cannot be read"));
}

}  // namespace
}  // namespace nni_compression::server
