#include "server/base/errors.h"

#include <gtest/gtest.h>

#include <new>
#include <stdexcept>

namespace nni_compression::server {
namespace {

TEST(ErrorsTest, OnlyExhaustionThatPassesHasATimeToWait) {
  EXPECT_EQ(RetryAfter(ExhaustedFor(absl::Milliseconds(1500), "m")), absl::Milliseconds(1500));
  EXPECT_FALSE(RetryAfter(absl::ResourceExhaustedError("never")));
}

TEST(ErrorsTest, ExceptionsBecomeStatuses) {
  EXPECT_EQ(CatchExceptions([]() -> absl::Status { throw std::bad_alloc(); }).code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(CatchExceptions([]() -> absl::Status { throw std::runtime_error("x"); }),
            absl::InternalError("x"));
  EXPECT_EQ(CatchExceptions([] { return absl::OkStatus(); }), absl::OkStatus());
}

}  // namespace
}  // namespace nni_compression::server
