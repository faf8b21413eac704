#include "server/platform/host_resources.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace nni_compression::server {
namespace {

TEST(HostResourcesTest, ReadsTheSmallestLimitOfItsCgroups) {
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

TEST(HostResourcesTest, TheProcessUsesWhatItUses) {
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

}  // namespace
}  // namespace nni_compression::server
