#include "server/convert/grpc_status.h"

#include <gtest/gtest.h>

#include <string>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "server/base/errors.h"

namespace nni_compression::server {
namespace {

TEST(GrpcStatusTest, KeepsTheCodeAndMakesTheMessageFitForMetadata) {
  const grpc::Status status = ToGrpc(absl::NotFoundError("no\nsuch " + std::string(5000, 'x')));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_LE(status.error_message().size(), 2000u);
  EXPECT_EQ(status.error_message().find('\n'), std::string::npos);
  EXPECT_TRUE(ToGrpc(absl::OkStatus()).ok());
}

TEST(GrpcStatusTest, ExhaustionThatPassesSaysSoInItsDetails) {
  const grpc::Status status = ToGrpc(QuotaExhausted("calls", 3, 1, 3, absl::Milliseconds(1500)));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(status.error_message(),
            "the tenant's quota of calls is 3, of which 3 are in use; the call needs 1 more");
  google::rpc::Status details;
  google::rpc::RetryInfo retry;
  ASSERT_TRUE(details.ParseFromString(status.error_details()));
  EXPECT_EQ(details.code(), static_cast<int>(status.error_code()));
  EXPECT_EQ(details.message(), status.error_message());
  ASSERT_TRUE(details.details(0).UnpackTo(&retry));
  EXPECT_EQ(retry.retry_delay().seconds(), 1);
  EXPECT_EQ(retry.retry_delay().nanos(), 500000000);
  EXPECT_EQ(ToGrpc(QuotaExhausted("calls", 0, 1, 0, std::nullopt)).error_details(), "");
}

}  // namespace
}  // namespace nni_compression::server
