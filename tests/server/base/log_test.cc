#include "server/base/log.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"

namespace nni_compression::server {
namespace {

TEST(LogTest, ValuesCannotForgeALine) {
  EXPECT_EQ(FormatEvent("x", {{"name", "a\nevent=forged"}}),
            "event=x name=\"a\\\\x0aevent=forged\"");
  EXPECT_EQ(FormatEvent("x", {{"name", "say \"hi\""}, {"n", 3}}),
            "event=x name=\"say \\\"hi\\\"\" n=3");
  EXPECT_EQ(FormatEvent("x", {{"empty", ""}, {"plain", "a.b/c-1"}}),
            "event=x empty=\"\" plain=a.b/c-1");
}

TEST(LogTest, JsonHasTheSameValuesAsStrings) {
  const std::string event = FormatEvent("x",
                                        {{"name", "a\nb\",\"event\":\"forged\\"},
                                         {"n", 3},
                                         {"gr\xc3\xb6\xc3\x9f", "\xff\xe2\x80\xa8"}},
                                        LogFormat::kJson);
  EXPECT_EQ(nlohmann::json::parse(absl::StrCat("{", event, "}")),
            nlohmann::json({{"event", "x"},
                            {"name", "a\\x0ab\",\"event\":\"forged\\"},
                            {"n", "3"},
                            {"gr\xc3\xb6\xc3\x9f", "\\xff\\xe2\\x80\\xa8"}}));
}

TEST(LogTest, WhatEndsALineSomewhereIsEscaped) {
  for (const char* bytes :
       {"\n", "\r", "\v", "\f", "\x1b", "\x7f", "\xc2\x85", "\xe2\x80\xa8", "\xe2\x80\xa9",
        /*overlong:*/ "\xc0\x8a", "\xe0\x80\x8a", "\xf0\x80\x80\x8a",
        /*surrogate:*/ "\xed\xa0\x80", /*too high:*/ "\xf4\x90\x80\x80"}) {
    for (const char c : Printable(bytes, 100)) EXPECT_TRUE(c >= 0x20 && c < 0x7f) << bytes;
  }
}

TEST(LogTest, LongAndBrokenTextIsCutAndEscaped) {
  EXPECT_EQ(Printable(std::string(1000, 'a'), 10), "aaaaaaa...");
  EXPECT_EQ(Printable(absl::string_view("a\0b", 3), 100), "a\\x00b");
  EXPECT_EQ(Printable("\xff\xc3", 100), "\\xff\\xc3");
  EXPECT_EQ(Printable("gr\xc3\xb6\xc3\x9f", 100), "gr\xc3\xb6\xc3\x9f");
  EXPECT_EQ(Printable("aaaa\xc3\xb6\xc3\xb6\xc3\xb6", 8), "aaaa...") << "not half a letter";
}

TEST(LogTest, AnUnknownLevelIsRefused) {
  EXPECT_EQ(SetUpLog("loud").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(SetUpLog("info", "xml").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(SetUpLog("error").ok());
}

}  // namespace
}  // namespace nni_compression::server
