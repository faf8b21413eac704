#include "server/access/tenant_editor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/escaping.h"
#include "server/platform/sha256.h"

namespace nni_compression::access {
namespace {

namespace fs = std::filesystem;

using ::testing::HasSubstr;
using ::testing::Not;

class TenantEditorTest : public ::testing::Test {
 protected:
  TenantEditorTest() {
    std::string pattern = ::testing::TempDir() + "/tenantsXXXXXX";
    folder_ = mkdtemp(pattern.data());
  }
  ~TenantEditorTest() override { fs::remove_all(folder_); }

  std::string Text() const {
    std::ifstream file(path());
    return {std::istreambuf_iterator<char>(file), {}};
  }
  std::string path() const { return folder_ + "/tenants"; }
  mode_t Mode() const {
    struct stat status;
    EXPECT_EQ(stat(path().c_str(), &status), 0);
    return status.st_mode & 07777;
  }

  std::string folder_;
};

TEST_F(TenantEditorTest, ATokenIsShownOnceAndKeptAsItsDigest) {
  const TenantEditor editor(path());
  const std::string token = *editor.Add("a", false);
  EXPECT_EQ(token.size(), 64u);
  EXPECT_NE(token, *editor.Add("a", false)) << "a tenant may have several";
  EXPECT_THAT(Text(), Not(HasSubstr(token)));
  const Tenants tenants = *editor.Read();
  ASSERT_EQ(tenants.tokens.size(), 2u);
  EXPECT_EQ(tenants.tokens[0].digest, server::Sha256(token));
  EXPECT_EQ(tenants.tokens[0].tenant, "a");
  EXPECT_EQ(Mode(), 0600u);
}

TEST_F(TenantEditorTest, RemarksAndTheModeStay) {
  std::ofstream(path()) << "# ours\n";
  chmod(path().c_str(), 0640);
  const TenantEditor editor(path());
  ASSERT_TRUE(editor.Add("ops", true).ok());
  EXPECT_THAT(Text(), HasSubstr("# ours\ntenant ops admin\n"));
  EXPECT_TRUE(editor.Read()->named.at("ops").admin);
  EXPECT_EQ(Mode(), 0640u);
}

TEST_F(TenantEditorTest, TokensAreRevokedOneByOneOrAll) {
  const TenantEditor editor(path());
  const std::string first = *editor.Add("a", true);
  const std::string second = *editor.Add("a", false);
  ASSERT_TRUE(editor.Add("b", false).ok());
  EXPECT_EQ(*editor.Revoke("a", absl::BytesToHexString(server::Sha256(first)).substr(0, 12)), 1);
  EXPECT_EQ(editor.Read()->tokens[0].digest, server::Sha256(second));
  EXPECT_TRUE(editor.Read()->named.at("a").admin);
  EXPECT_EQ(*editor.Revoke("a", ""), 1);
  EXPECT_EQ(editor.Read()->named.count("a"), 0u);
  EXPECT_EQ(editor.Read()->tokens.size(), 1u);
  EXPECT_EQ(editor.Revoke("a", "").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(editor.Revoke("b", "zz").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(*editor.Revoke("b", ""), 1);
  EXPECT_EQ(Text(), "# no tenants\n") << "a server treats an empty file as damaged";
}

TEST_F(TenantEditorTest, AnIdThatStandsForSeveralTokensRevokesNone) {
  const std::string one = "abc" + std::string(61, '0');
  const std::string other = "ABd" + std::string(61, '0');
  const std::string text = one + " a\n" + other + " a\nabe" + std::string(61, '0') + " b\n";
  std::ofstream(path()) << text;
  const TenantEditor editor(path());
  for (const std::string prefix : {"a", "ab", "aB"}) {
    const absl::Status status = editor.Revoke("a", prefix).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(), HasSubstr("stands for 2 tokens of tenant 'a'"));
  }
  EXPECT_EQ(Text(), text);
  EXPECT_EQ(*editor.Revoke("a", "abD"), 1);
  EXPECT_EQ(*editor.Revoke("a", "a"), 1) << "there is one left";
}

TEST_F(TenantEditorTest, WhatRootMakesInAnothersFolderIsThatUsers) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  constexpr uid_t kServer = 10001;
  ASSERT_EQ(chown(folder_.c_str(), kServer, kServer), 0);
  ASSERT_TRUE(TenantEditor(path()).Add("a", false).ok());
  for (const std::string& file : {path(), path() + ".lock"}) {
    struct stat status;
    ASSERT_EQ(stat(file.c_str(), &status), 0);
    EXPECT_EQ(status.st_uid, kServer) << file;
    EXPECT_EQ(status.st_mode & 0777, 0600u);
  }
}

TEST_F(TenantEditorTest, NoLinkLeadsTheLockElsewhere) {
  fs::create_symlink(folder_ + "/elsewhere", path() + ".lock");
  EXPECT_FALSE(TenantEditor(path()).Add("a", false).ok());
  EXPECT_FALSE(fs::exists(folder_ + "/elsewhere"));
}

TEST_F(TenantEditorTest, LimitsAreForTenantsThatThereAre) {
  const TenantEditor editor(path());
  const absl::Status nobody = editor.SetQuota("vision-team", {"sessions=3"}).status();
  EXPECT_EQ(nobody.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(nobody.message(), HasSubstr("which has none"));
  EXPECT_FALSE(fs::exists(path()));
  ASSERT_TRUE(editor.Add("vision-team", false).ok());
  ASSERT_TRUE(editor.Add("ops", true).ok());
  const std::string before = Text();
  const absl::Status misspelt = editor.SetQuota("visio-team", {"sessions=3"}).status();
  EXPECT_EQ(misspelt.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(misspelt.message(), HasSubstr("which has ops, vision-team. `tenant add visio-team`"));
  EXPECT_EQ(Text(), before);
  EXPECT_TRUE(editor.SetQuota("vision-team", {"sessions=3"}).ok());
  // A certificate's name.
  EXPECT_TRUE(editor.SetQuota("trainer.example", {"sessions=3"}, /*without_token=*/true).ok());
  EXPECT_EQ(ToText(*editor.SetQuota("trainer.example", {"calls=2"})), "sessions=3 calls=2");
  EXPECT_EQ(editor.Revoke("trainer.example", "ab").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(*editor.Revoke("trainer.example", ""), 0);
  EXPECT_THAT(Text(), ::testing::Not(HasSubstr("trainer.example")));
  EXPECT_EQ(editor.Revoke("trainer.example", "").status().code(), absl::StatusCode::kNotFound);
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(editor.Add("t" + std::to_string(i), false).ok());
  EXPECT_THAT(editor.SetQuota("visio-team", {"sessions=3"}).status().message(),
              HasSubstr("which has ops, t0, t1, t2, t3, t4, t5, t6, t7, t8 and 2 more"));
}

TEST_F(TenantEditorTest, LimitsAreSetAndTakenAway) {
  const TenantEditor editor(path());
  ASSERT_TRUE(editor.Add("a", false).ok());
  EXPECT_EQ(ToText(*editor.SetQuota("a", {"sessions=3", "memory=1M"})),
            "sessions=3 memory=1048576");
  EXPECT_EQ(ToText(*editor.SetQuota("a", {"memory=none", "calls=2"})), "sessions=3 calls=2");
  EXPECT_THAT(Text(), HasSubstr("tenant a sessions=3 calls=2\n"));
  const std::string before = Text();
  EXPECT_EQ(editor.SetQuota("a", {"calls=1", "sessions=few"}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Text(), before);
}

TEST_F(TenantEditorTest, WhatIsNoFileOfTenantsIsLeftAlone) {
  const TenantEditor editor(path());
  EXPECT_EQ(editor.Read().status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(editor.Revoke("a", "").status().code(), absl::StatusCode::kInvalidArgument);
  std::ofstream(path()) << "my diary\n";
  EXPECT_EQ(editor.Add("a", false).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Text(), "my diary\n");
  EXPECT_EQ(editor.Add("two words", false).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(TenantEditor(folder_ + "/none/tenants").Add("a", false).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(TenantEditorTest, ChangesAtOneTimeAreAllThere) {
  const TenantEditor editor(path());
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      for (int n = 0; n < 5; ++n) EXPECT_TRUE(editor.Add("a", false).ok());
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(editor.Read()->tokens.size(), 40u);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 2) << "the file and its lock";
}

TEST_F(TenantEditorTest, ALinkStaysOne) {
  const std::string link = folder_ + "/link";
  std::ofstream(path()) << "";
  fs::create_symlink(path(), link);
  ASSERT_TRUE(TenantEditor(link).Add("a", false).ok());
  EXPECT_TRUE(fs::is_symlink(link));
  EXPECT_EQ(TenantEditor(path()).Read()->tokens.size(), 1u);
}

}  // namespace
}  // namespace nni_compression::access
