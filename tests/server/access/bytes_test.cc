#include "server/access/bytes.h"

#include <gtest/gtest.h>

namespace nni_compression::access {
namespace {

TEST(BytesTest, ParsesBytesWithSuffixes) {
  EXPECT_EQ(*ParseBytes("0"), 0);
  EXPECT_EQ(*ParseBytes("1000"), 1000);
  EXPECT_EQ(*ParseBytes("2K"), 2048);
  EXPECT_EQ(*ParseBytes("64M"), 64 << 20);
  EXPECT_EQ(*ParseBytes("4G"), int64_t{4} << 30);
  for (const char* bad : {"", "G", "-1", "1.5G", "4g", "10000000000G", "1 K B"}) {
    EXPECT_EQ(ParseBytes(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

}  // namespace
}  // namespace nni_compression::access
