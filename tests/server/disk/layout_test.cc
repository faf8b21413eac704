#include "server/disk/layout.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace nni_compression::server::layout {
namespace {

namespace fs = std::filesystem;

class LayoutTest : public ::testing::Test {
 protected:
  LayoutTest()
      : directory_(::testing::TempDir() + "/layout" + std::to_string(getpid()) +
                   ::testing::UnitTest::GetInstance()->current_test_info()->name()) {
    fs::create_directories(directory_);
  }
  ~LayoutTest() override { fs::remove_all(directory_); }

  void Write(const char* name) { std::ofstream(PathIn(directory_, name)) << "x"; }

  const std::string directory_;
};

TEST_F(LayoutTest, ARecordIsNamedByItsDigest) {
  EXPECT_EQ(RecordPath(std::string("\x01\xab\xff", 3)), "01/abff");
}

TEST_F(LayoutTest, ACopyIsUnfinishedUntilItsCatalogueHasItsName) {
  EXPECT_FALSE(HasUnfinishedCopy(directory_));
  Write(kUnfinishedCatalogue);
  EXPECT_TRUE(HasUnfinishedCopy(directory_));
  Write(kCatalogue);
  EXPECT_FALSE(HasUnfinishedCopy(directory_)) << "sessions have been stored since";
}

TEST_F(LayoutTest, ADirectoryThatWasReplacedIsNotWhatItsNameSays) {
  const int open_directory = open(directory_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  EXPECT_TRUE(IsAt(open_directory, directory_));
  // The old one lives on, so its number is not given away again.
  fs::rename(directory_, directory_ + ".old");
  EXPECT_FALSE(IsAt(open_directory, directory_));
  fs::create_directories(directory_);
  EXPECT_FALSE(IsAt(open_directory, directory_));
  fs::remove_all(directory_ + ".old");
  close(open_directory);
}

}  // namespace
}  // namespace nni_compression::server::layout
