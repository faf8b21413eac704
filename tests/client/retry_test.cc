#include "client/cpp/retry.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace nni_compression::internal {
namespace {

const absl::Time kStart = absl::FromUnixSeconds(1000);

Outcome Unavailable() { return {absl::UnavailableError("gone")}; }

Outcome Exhausted(std::optional<std::string> pushback) {
  return {absl::ResourceExhaustedError("full"), std::move(pushback)};
}

RetryOptions Options() {
  RetryOptions options;
  options.initial_backoff = absl::Milliseconds(100);
  options.max_backoff = absl::Milliseconds(400);
  options.time_limit = absl::Seconds(10);
  return options;
}

TEST(RetryTest, BacksOffExponentiallyWithJitter) {
  Retry retry(Options(), absl::InfiniteFuture());
  for (const int64_t milliseconds : {100, 200, 400, 400}) {
    const auto delay = retry.NextDelay(Unavailable(), kStart);
    ASSERT_TRUE(delay.has_value());
    EXPECT_GE(*delay, absl::Milliseconds(milliseconds) / 2);
    EXPECT_LE(*delay, absl::Milliseconds(milliseconds));
  }
}

TEST(RetryTest, GivesUpAtTheTimeLimitAndProgressBeginsItAnew) {
  Retry retry(Options(), absl::InfiniteFuture());
  EXPECT_TRUE(retry.NextDelay(Unavailable(), kStart).has_value());
  EXPECT_TRUE(retry.NextDelay(Unavailable(), kStart + absl::Seconds(9)).has_value());
  Outcome progressed = Unavailable();
  progressed.progress = true;
  EXPECT_TRUE(retry.NextDelay(progressed, kStart + absl::Seconds(11)).has_value());
  EXPECT_FALSE(retry.NextDelay(Unavailable(), kStart + absl::Seconds(22)).has_value());
}

TEST(RetryTest, NeverWaitsBeyondTheDeadline) {
  Retry retry(Options(), kStart + absl::Milliseconds(10));
  EXPECT_FALSE(retry.NextDelay(Unavailable(), kStart).has_value());
  Retry pushed(Options(), kStart + absl::Seconds(1));
  EXPECT_FALSE(pushed.NextDelay(Exhausted("1000"), kStart).has_value());
}

TEST(RetryTest, WaitsAsLongAsTheServerSays) {
  Retry retry(Options(), absl::InfiniteFuture());
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(retry.NextDelay(Exhausted("250"), kStart + absl::Seconds(i)),
              absl::Milliseconds(250));
  }
}

TEST(RetryTest, ExhaustionIsFinalWithoutAPushbackOrWithANegativeOne) {
  Retry retry(Options(), absl::InfiniteFuture());
  EXPECT_FALSE(retry.NextDelay(Exhausted(std::nullopt), kStart).has_value());
  EXPECT_FALSE(retry.NextDelay(Exhausted("-1"), kStart).has_value());
  EXPECT_FALSE(retry.NextDelay(Exhausted("soon"), kStart).has_value());
}

TEST(RetryTest, ReadsTheTimeToWaitOfARetryInfo) {
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(2);
  retry.mutable_retry_delay()->set_nanos(500000000);
  google::rpc::Status details;
  details.set_code(8);
  details.set_message("full");
  EXPECT_FALSE(RetryDelay(details.SerializeAsString()));
  details.add_details()->PackFrom(google::rpc::Status());  // of another kind
  EXPECT_FALSE(RetryDelay(details.SerializeAsString()));
  details.add_details()->PackFrom(retry);
  EXPECT_EQ(RetryDelay(details.SerializeAsString()), absl::Milliseconds(2500));
  const std::string bytes = details.SerializeAsString();
  EXPECT_FALSE(RetryDelay(bytes.substr(0, bytes.size() - 1)));
  EXPECT_FALSE(RetryDelay(""));
  EXPECT_FALSE(RetryDelay("no message"));
}

TEST(RetryTest, OtherErrorsAreFinal) {
  for (const auto code :
       {absl::StatusCode::kInvalidArgument, absl::StatusCode::kNotFound,
        absl::StatusCode::kFailedPrecondition, absl::StatusCode::kDeadlineExceeded,
        absl::StatusCode::kCancelled, absl::StatusCode::kInternal, absl::StatusCode::kDataLoss}) {
    Retry retry(Options(), absl::InfiniteFuture());
    EXPECT_FALSE(retry.NextDelay({absl::Status(code, "no")}, kStart).has_value());
    EXPECT_FALSE(retry.NextDelay({absl::Status(code, "no"), "5"}, kStart).has_value());
  }
}

}  // namespace
}  // namespace nni_compression::internal
