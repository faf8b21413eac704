#include "server/limits/upload_meter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/base/errors.h"
#include "tests/testing/fake_clock.h"

namespace nni_compression::server {
namespace {

using ::nni_compression::testing::FakeClock;
using ::testing::HasSubstr;

class UploadMeterTest : public ::testing::Test {
 protected:
  // How long a call has to wait that uploads a tensor; zero: it was let in.
  absl::Duration Wait(std::optional<int64_t> limit) {
    const absl::Status status = meter_.Add(/*first=*/true, limit);
    if (status.ok()) return absl::ZeroDuration();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    return RetryAfter(status).value_or(absl::InfiniteDuration());
  }

  FakeClock clock_;
  UploadMeter meter_{&clock_};
};

TEST_F(UploadMeterTest, SoManyMayComeAtOnceAndThenSoManyASecond) {
  for (int i = 0; i < 4; ++i) EXPECT_EQ(Wait(4), absl::ZeroDuration()) << i;
  EXPECT_EQ(Wait(4), absl::Milliseconds(250));
  EXPECT_EQ(Wait(4), absl::Milliseconds(250)) << "what is refused does not count";
  clock_.Advance(absl::Milliseconds(249));
  EXPECT_EQ(Wait(4), absl::Milliseconds(1));
  clock_.Advance(absl::Milliseconds(1));
  EXPECT_EQ(Wait(4), absl::ZeroDuration());
  EXPECT_EQ(Wait(4), absl::Milliseconds(250));
  clock_.Advance(absl::Hours(1));
  for (int i = 0; i < 4; ++i) EXPECT_EQ(Wait(4), absl::ZeroDuration()) << "and no more: " << i;
  EXPECT_EQ(Wait(4), absl::Milliseconds(250));
}

TEST_F(UploadMeterTest, ACallThatBeganGoesOnAndTheNextWaitsForIt) {
  EXPECT_TRUE(meter_.Add(true, 2).ok());
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(meter_.Add(false, 2).ok());
  EXPECT_EQ(Wait(2), absl::Milliseconds(2500)) << "six have come, two were for this second";
  clock_.Advance(absl::Milliseconds(2500));
  EXPECT_EQ(Wait(2), absl::ZeroDuration());
}

TEST_F(UploadMeterTest, ACallGetsNoFurtherAheadThanAMinute) {
  EXPECT_TRUE(meter_.Add(true, 1).ok());
  for (int i = 0; i < 60; ++i) EXPECT_TRUE(meter_.Add(false, 1).ok()) << i;
  const absl::Status refused = meter_.Add(false, 1);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()),
              HasSubstr("quota of uploads is 1 tensors per second"));
  EXPECT_EQ(RetryAfter(refused), absl::Seconds(61));
}

TEST_F(UploadMeterTest, WithoutALimitAllAreLetInAndWithNoneNobody) {
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(Wait(std::nullopt), absl::ZeroDuration());
  EXPECT_EQ(Wait(0), absl::InfiniteDuration()) << "no waiting helps";
  EXPECT_EQ(Wait(1), absl::ZeroDuration()) << "a limit that is new owes nothing";
}

TEST_F(UploadMeterTest, AClockThatIsSetBackMakesNobodyWaitForIt) {
  EXPECT_EQ(Wait(1), absl::ZeroDuration());
  clock_.Advance(-absl::Hours(1));
  EXPECT_EQ(Wait(1), absl::Seconds(1));
}

TEST_F(UploadMeterTest, TheRateIsThatOfTheLastSecond) {
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(meter_.Add(true, std::nullopt).ok());
  EXPECT_EQ(meter_.rate(), 0) << "the second is not over";
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(meter_.rate(), 3);
  EXPECT_EQ(meter_.rate(), 3);
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(meter_.rate(), 0);
}

}  // namespace
}  // namespace nni_compression::server
