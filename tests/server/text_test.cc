// What turns values into text and back: log, statuses, machine, addresses.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <new>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "server/call_trace.h"
#include "server/listen_address.h"
#include "server/log.h"
#include "server/machine.h"
#include "server/status.h"

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

TEST(StatusTest, KeepsTheCodeAndMakesTheMessageFitForMetadata) {
  const grpc::Status status = ToGrpc(absl::NotFoundError("no\nsuch " + std::string(5000, 'x')));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_LE(status.error_message().size(), 2000u);
  EXPECT_EQ(status.error_message().find('\n'), std::string::npos);
  EXPECT_TRUE(ToGrpc(absl::OkStatus()).ok());
}

TEST(StatusTest, OnlyExhaustionThatPassesHasATimeToWait) {
  EXPECT_EQ(RetryAfter(ExhaustedFor(absl::Milliseconds(1500), "m")), absl::Milliseconds(1500));
  EXPECT_FALSE(RetryAfter(absl::ResourceExhaustedError("never")));
}

TEST(StatusTest, ExhaustionThatPassesSaysSoInItsDetails) {
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

TEST(StatusTest, ExceptionsBecomeStatuses) {
  EXPECT_EQ(CatchExceptions([]() -> absl::Status { throw std::bad_alloc(); }).code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(CatchExceptions([]() -> absl::Status { throw std::runtime_error("x"); }),
            absl::InternalError("x"));
  EXPECT_EQ(CatchExceptions([] { return absl::OkStatus(); }), absl::OkStatus());
}

TEST(MachineTest, ReadsTheSmallestLimitOfItsCgroups) {
  const std::filesystem::path root =
      std::filesystem::path(::testing::TempDir()) / ("cgroup" + std::to_string(getpid()));
  const auto write = [&](const std::string& path, const std::string& text) {
    std::filesystem::create_directories((root / path).parent_path());
    std::ofstream(root / path) << text;
  };
  write("proc/self/cgroup", "0::/a/b\n");
  write("sys/fs/cgroup/a/memory.max", "2000000\n");
  write("sys/fs/cgroup/a/b/memory.max", "max\n");
  EXPECT_EQ(MemoryLimit(root.string()), 2000000);
  write("proc/self/cgroup", "5:cpu,memory:/c\n0::/\n");
  write("sys/fs/cgroup/memory/c/memory.limit_in_bytes", "1000000\n");
  EXPECT_EQ(MemoryLimit(root.string()), 1000000);
  write("proc/self/cgroup", "");
  EXPECT_GT(MemoryLimit(root.string()), 2000000) << "the machine's memory";
  const int machine = CpuLimit(root.string());
  EXPECT_GE(machine, 1);
  write("proc/self/cgroup", "0::/a/b\n");
  write("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  EXPECT_EQ(CpuLimit(root.string()), machine);
  write("sys/fs/cgroup/a/cpu.max", "50000 100000\n");
  EXPECT_EQ(CpuLimit(root.string()), 1) << "half a core";
  write("proc/self/cgroup", "5:cpu,cpuacct:/c\n");
  write("sys/fs/cgroup/cpu/c/cpu.cfs_quota_us", "-1\n");
  write("sys/fs/cgroup/cpu/c/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(CpuLimit(root.string()), machine);
  write("sys/fs/cgroup/cpu/c/cpu.cfs_quota_us", "100000\n");
  EXPECT_EQ(CpuLimit(root.string()), 1);
  std::filesystem::remove_all(root);
}

TEST(MachineTest, TheProcessUsesWhatItUses) {
  const ProcessUse use = ReadProcessUse();
  EXPECT_GT(use.resident_bytes, 1 << 20);
  EXPECT_GT(use.cpu_seconds, 0);
  EXPECT_GE(use.open_files, 3);
  EXPECT_GT(use.start_seconds, 1.6e9);
  EXPECT_LE(use.start_seconds, absl::ToUnixSeconds(absl::Now()) + 1);
  const int file = open("/dev/null", O_RDONLY);
  EXPECT_EQ(ReadProcessUse().open_files, use.open_files + 1);
  close(file);
}

TEST(ListenAddressTest, OnlyLoopbackIsAllowedUnlessToldOtherwise) {
  for (const char* good : {"127.0.0.1:0", "127.1.2.3:50051", "localhost:1", "[::1]:65535",
                           "unix:/run/compression", "unix-abstract:compression"}) {
    EXPECT_TRUE(CheckListenAddress(good, false).ok()) << good;
  }
  for (const char* wide : {"0.0.0.0:50051", "[::]:50051", "192.168.1.1:1", "example.com:1"}) {
    EXPECT_EQ(CheckListenAddress(wide, false).code(), absl::StatusCode::kInvalidArgument) << wide;
    EXPECT_TRUE(CheckListenAddress(wide, true).ok()) << wide;
  }
  for (const char* bad :
       {"", "127.0.0.1", ":50051", "127.0.0.1:x", "127.0.0.1:65536", "h:-1", "unix:"}) {
    const absl::Status refused = CheckListenAddress(bad, true, "metrics_listen");
    EXPECT_THAT(std::string(refused.message()), ::testing::StartsWith("metrics_listen is '"));
    EXPECT_EQ(CheckListenAddress(bad, true).code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

}  // namespace
}  // namespace nni_compression::server
