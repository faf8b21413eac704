#include "server/platform/shm_paths.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"

namespace nni_compression::server {
namespace {

using ::testing::ElementsAre;

class ShmPathsTest : public ::testing::Test {
 protected:
  ShmPathsTest() { std::filesystem::create_directories(root_); }
  ~ShmPathsTest() override {
    std::filesystem::remove_all(root_);
    unsetenv("XDG_RUNTIME_DIR");
  }

  static mode_t ModeOf(const std::string& path) {
    struct stat found = {};
    lstat(path.c_str(), &found);
    return found.st_mode & 0777;
  }

  const std::string root_ = absl::StrCat(::testing::TempDir(), "/shm-paths-", getpid());
  const std::string run_ = absl::StrCat("/run/user/", geteuid(), "/nni-compression/50051.shm");
  const std::string tmp_ = absl::StrCat("/tmp/nni-compression-", geteuid(), "/50051.shm");
};

TEST_F(ShmPathsTest, TheRuntimeFolderComesFirst) {
  setenv("XDG_RUNTIME_DIR", root_.c_str(), 1);
  EXPECT_THAT(ShmPathsOfPort(50051), ElementsAre(root_ + "/nni-compression/50051.shm", run_, tmp_));
  for (const char* const unusable : {"", "relative"}) {
    setenv("XDG_RUNTIME_DIR", unusable, 1);
    EXPECT_THAT(ShmPathsOfPort(50051), ElementsAre(run_, tmp_));
  }
  setenv("XDG_RUNTIME_DIR", absl::StrCat("/run/user/", geteuid()).c_str(), 1);
  EXPECT_THAT(ShmPathsOfPort(50051), ElementsAre(run_, tmp_));
}

TEST_F(ShmPathsTest, AMissingFolderIsCreatedForThisUserAlone) {
  ASSERT_EQ(MakePrivateFolderOf(root_ + "/new/50051.shm"), absl::OkStatus());
  EXPECT_EQ(ModeOf(root_ + "/new"), 0700u);
  EXPECT_EQ(MakePrivateFolderOf(root_ + "/new/50052.shm"), absl::OkStatus());
  EXPECT_EQ(MakePrivateFolderOf(root_ + "/none/new/1.shm").code(), absl::StatusCode::kUnavailable);
}

TEST_F(ShmPathsTest, AFolderThatOthersCanChangeOrMadeIsRefused) {
  const std::string folder = root_ + "/folder";
  mkdir(folder.c_str(), 0700);
  ASSERT_EQ(MakePrivateFolderOf(folder + "/1.shm"), absl::OkStatus());
  for (const mode_t mode : {0710, 0701, 0720}) {
    chmod(folder.c_str(), mode);
    EXPECT_EQ(MakePrivateFolderOf(folder + "/1.shm").code(), absl::StatusCode::kFailedPrecondition);
  }
  chmod(folder.c_str(), 0700);
  ASSERT_EQ(symlink(folder.c_str(), (root_ + "/link").c_str()), 0);
  EXPECT_EQ(MakePrivateFolderOf(root_ + "/link/1.shm").code(),
            absl::StatusCode::kFailedPrecondition);
  if (geteuid() != 0) GTEST_SKIP() << "only root can give a folder away";
  ASSERT_EQ(chown(folder.c_str(), 10001, 10001), 0);
  EXPECT_EQ(MakePrivateFolderOf(folder + "/1.shm").code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace nni_compression::server
