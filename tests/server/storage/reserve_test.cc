#include "server/storage/reserve.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <string>

namespace nni_compression::server {
namespace {

class ReserveTest : public ::testing::Test {
 protected:
  ReserveTest() { std::filesystem::remove(path_); }
  ~ReserveTest() override { std::filesystem::remove(path_); }

  const std::string path_ = ::testing::TempDir() + "/reserve" + std::to_string(getpid());
};

TEST_F(ReserveTest, TakesRoomAndGivesItBackOnce) {
  Reserve reserve(path_);
  EXPECT_FALSE(reserve.Release());
  EXPECT_FALSE(std::filesystem::exists(path_));
  reserve.Fill();
  EXPECT_EQ(std::filesystem::file_size(path_), Reserve::kBytes);
  EXPECT_TRUE(reserve.Release());
  EXPECT_FALSE(std::filesystem::exists(path_));
  EXPECT_FALSE(reserve.Release());
}

TEST_F(ReserveTest, GrowsWhenThereIsRoomAgain) {
  Reserve reserve(path_);
  struct rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const struct rlimit small = {Reserve::kBytes / 2, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  reserve.Fill();
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(std::filesystem::file_size(path_), Reserve::kBytes / 2);
  reserve.Fill();
  EXPECT_EQ(std::filesystem::file_size(path_), Reserve::kBytes);
  EXPECT_TRUE(reserve.Release());
}

TEST_F(ReserveTest, TakesOverWhatAnEarlierProcessLeft) {
  Reserve(path_).Fill();
  Reserve reserve(path_);
  reserve.Fill();
  EXPECT_EQ(std::filesystem::file_size(path_), Reserve::kBytes);
  EXPECT_TRUE(reserve.Release());
}

TEST_F(ReserveTest, DoesWithoutWhereItCannotWrite) {
  Reserve reserve(path_ + "/nowhere");
  reserve.Fill();
  EXPECT_FALSE(reserve.Release());
}

}  // namespace
}  // namespace nni_compression::server
