#include "server/base/log_limiter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"

namespace nni_compression::server {
namespace {

class LogLimiterTest : public ::testing::Test {
 protected:
  // How many of so many lines are written.
  int Written(int lines, const std::string& event, const std::string& subject) {
    int written = 0;
    for (int i = 0; i < lines; ++i) {
      if (limiter_.Admit(event, subject, now_)) ++written;
    }
    return written;
  }

  LogLimiter limiter_;
  LogLimiter::Time now_ = LogLimiter::Time(std::chrono::hours(1));
};

TEST_F(LogLimiterTest, AfterABurstOneLineASecondIsWritten) {
  EXPECT_EQ(Written(1000, "failed", "us"), 100);
  now_ += std::chrono::seconds(5);
  EXPECT_EQ(Written(1000, "failed", "us"), 5);
  now_ += std::chrono::hours(1);
  EXPECT_EQ(Written(1000, "failed", "us"), 100) << "no more than a burst is saved up";
}

TEST_F(LogLimiterTest, EventsAndSubjectsDoNotHideOneAnother) {
  Written(1000, "failed", "us");
  EXPECT_EQ(Written(1000, "failed", "them"), 100);
  EXPECT_EQ(Written(1000, "bound", "us"), 100);
}

TEST_F(LogLimiterTest, SubjectsTogetherHaveALimit) {
  int written = 0;
  for (int i = 0; i < 100; ++i) written += Written(100, "refused", absl::StrCat(i));
  EXPECT_EQ(written, 1000);
  now_ += std::chrono::seconds(2);
  written = 0;
  for (int i = 0; i < 100; ++i) written += Written(100, "refused", absl::StrCat(i));
  EXPECT_EQ(written, 20);
}

TEST_F(LogLimiterTest, WhatIsLeftOutIsCountedOnce) {
  Written(150, "failed", "us");
  Written(10, "failed", "them");
  const auto suppressed = limiter_.TakeSuppressed(now_);
  ASSERT_EQ(suppressed.size(), 1u);
  EXPECT_EQ(suppressed[0].event, "failed");
  EXPECT_EQ(suppressed[0].subject, "us");
  EXPECT_EQ(suppressed[0].lines, 50);
  EXPECT_TRUE(limiter_.TakeSuppressed(now_).empty());
  Written(7, "failed", "us");
  EXPECT_EQ(limiter_.TakeSuppressed(now_)[0].lines, 7) << "the bucket stays empty";
}

TEST_F(LogLimiterTest, SubjectsWithoutEndAreCountedTogether) {
  int64_t written = 0;
  for (int i = 0; i < 5000; ++i) written += Written(1, "refused", absl::StrCat(i));
  int64_t suppressed = 0;
  size_t subjects = 0;
  for (const auto& each : limiter_.TakeSuppressed(now_)) {
    suppressed += each.lines;
    ++subjects;
  }
  EXPECT_EQ(written + suppressed, 5000);
  EXPECT_LE(subjects, LogLimiter::kMaxSubjects + 1);
  // Quiet ones are forgotten.
  now_ += std::chrono::hours(1);
  limiter_.TakeSuppressed(now_);
  EXPECT_EQ(Written(1, "refused", "new"), 1);
  EXPECT_TRUE(limiter_.TakeSuppressed(now_).empty());
}

}  // namespace
}  // namespace nni_compression::server
