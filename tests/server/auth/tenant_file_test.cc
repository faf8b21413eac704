#include "server/auth/tenant_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "server/access/tenant_editor.h"
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
    file_ = *TenantFile::Open(path_);
  }

  // As often as a change takes to count.
  void Poll() {
    for (int look = 0; look < 2; ++look) file_->Poll();
  }

  void Change(const std::string& text) {
    Write(text);
    Poll();
  }

  std::string Refusal(const std::string& text) {
    Write(text);
    return std::string(TenantFile::Open(path_).status().message());
  }

  const std::string path_ = absl::StrCat(::testing::TempDir(), "/tenants", getpid());
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
  Change(TokenLine("two", "a"));
  EXPECT_TRUE(file_->Find("two"));
  EXPECT_FALSE(file_->Find("sesame"));
}

TEST_F(TenantFileTest, AFileThatCannotBeReadChangesNothing) {
  Open(TokenLine("sesame", "a") + TokenLine("two", "b"));
  Change(TokenLine("three", "a") + "damaged\n");
  EXPECT_TRUE(file_->Find("sesame"));
  EXPECT_FALSE(file_->Find("three"));
  Change((TokenLine("sesame", "a") + TokenLine("two", "b")).substr(0, 90));
  EXPECT_TRUE(file_->Find("two")) << "it was written half";
  std::filesystem::remove(path_);
  Poll();
  EXPECT_TRUE(file_->Find("sesame"));
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);
  Poll();
  EXPECT_TRUE(file_->Find("sesame"));
  std::filesystem::remove(path_);
  Change(TokenLine("three", "a"));
  EXPECT_TRUE(file_->Find("three"));
}

TEST_F(TenantFileTest, AnEmptyFileTakesNoTokensAway) {
  Open(TokenLine("sesame", "a"));
  for (const char* const text : {"", "\n", " \n\n"}) {
    Change(text);
    EXPECT_TRUE(file_->Find("sesame")) << '"' << text << '"';
  }
  Change("# nobody\n");
  EXPECT_FALSE(file_->Find("sesame"));
  Change("");
  Change(TokenLine("sesame", "a"));
  EXPECT_TRUE(file_->Find("sesame"));
}

TEST_F(TenantFileTest, TheLastTokenCanBeRevoked) {
  const access::TenantEditor editor(path_);
  std::filesystem::remove(path_);
  const std::string token = *editor.Add("a", false);
  file_ = *TenantFile::Open(path_);
  EXPECT_TRUE(file_->Find(token));
  EXPECT_EQ(*editor.Revoke("a", ""), 1);
  Poll();
  EXPECT_FALSE(file_->Find(token));
  std::filesystem::remove(path_ + ".lock");
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
