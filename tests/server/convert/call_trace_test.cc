#include "server/convert/call_trace.h"

#include <gtest/gtest.h>

namespace nni_compression::server {
namespace {

TEST(CallTraceTest, RequestIdsAreShortNames) {
  for (const char* good : {"a", "7f3a-Q.x_1"}) EXPECT_TRUE(IsRequestId(good)) << good;
  EXPECT_TRUE(IsRequestId(std::string(64, 'a')));
  EXPECT_FALSE(IsRequestId(std::string(65, 'a')));
  for (const char* bad : {"", "a b", "a\nb", "a\"", "\xc3\xb6"})
    EXPECT_FALSE(IsRequestId(bad)) << bad;
}

TEST(CallTraceTest, TraceParentIsThatOfW3C) {
  CallTrace trace;
  EXPECT_TRUE(ParseTraceParent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", &trace));
  EXPECT_EQ(trace.trace_id, "0af7651916cd43dd8448eb211c80319c");
  EXPECT_EQ(trace.parent_id, "b7ad6b7169203331");
  EXPECT_TRUE(
      ParseTraceParent("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", &trace));
  for (const char* bad : {"", "00", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
                          "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                          "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
                          "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
                          "00-00000000000000000000000000000000-b7ad6b7169203331-01",
                          "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01"}) {
    EXPECT_FALSE(ParseTraceParent(bad, &trace)) << bad;
  }
}

}  // namespace
}  // namespace nni_compression::server
