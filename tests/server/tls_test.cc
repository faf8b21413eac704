// What is said about files that are none; connections are in tests/client/python/test_tls.py.
#include "server/tls.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nni_compression::server {
namespace {

using ::testing::HasSubstr;

TEST(TlsTest, FilesComeTogetherOrNotAtAll) {
  EXPECT_TRUE(MakeServerCredentials({}).ok());
  for (const TlsOptions& options :
       {TlsOptions{"c", "", ""}, TlsOptions{"", "k", ""}, TlsOptions{"", "", "a"}}) {
    EXPECT_THAT(std::string(MakeServerCredentials(options).status().message()),
                HasSubstr("tls_certificate and tls_key have to be given both"));
  }
}

TEST(TlsTest, AFileThatIsMissingIsNamed) {
  const absl::Status status = MakeServerCredentials({"/none/c.pem", "/none/k.pem", ""}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(),
            "tls_certificate '/none/c.pem' cannot be read as a certificate in PEM");
}

}  // namespace
}  // namespace nni_compression::server
