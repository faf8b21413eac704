#include "server/platform/host_resources.h"

#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>
#include <thread>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace nni_compression::server {
namespace {

std::string ReadFile(const std::string& path) {
  std::ifstream file(path);
  std::stringstream content;
  content << file.rdbuf();
  return content.str();
}

constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

// The number in `path`; "max" and files that are not there limit nothing.
int64_t ReadLimit(const std::string& path) {
  int64_t limit = 0;
  const std::string content = ReadFile(path);
  if (!absl::SimpleAtoi(absl::StripAsciiWhitespace(content), &limit) || limit <= 0) {
    return kUnlimited;
  }
  return limit;
}

int64_t MemoryLimitV2(const std::string& cgroup) { return ReadLimit(cgroup + "/memory.max"); }

int64_t MemoryLimitV1(const std::string& cgroup) {
  return ReadLimit(cgroup + "/memory.limit_in_bytes");
}

// Cores, rounded up, from the microseconds of computing that a period may have.
int64_t CoresOf(int64_t quota, int64_t period) {
  return quota == kUnlimited || period == kUnlimited ? kUnlimited : (quota + period - 1) / period;
}

int64_t CpuLimitV2(const std::string& cgroup) {
  const std::string content = ReadFile(cgroup + "/cpu.max");
  const std::vector<absl::string_view> words =
      absl::StrSplit(content, absl::ByAnyChar(" \n"), absl::SkipEmpty());
  int64_t quota = 0;
  int64_t period = 0;
  if (words.size() != 2 || !absl::SimpleAtoi(words[0], &quota) ||
      !absl::SimpleAtoi(words[1], &period) || quota <= 0 || period <= 0) {
    return kUnlimited;
  }
  return CoresOf(quota, period);
}

int64_t CpuLimitV1(const std::string& cgroup) {
  return CoresOf(ReadLimit(cgroup + "/cpu.cfs_quota_us"), ReadLimit(cgroup + "/cpu.cfs_period_us"));
}

using LimitOf = int64_t (*)(const std::string& cgroup);

// The smallest limit of the cgroup at `path` below `base` and of all that it lies in.
int64_t SmallestLimit(const std::string& base, absl::string_view path, LimitOf limit_of) {
  std::string directory = base;
  int64_t smallest = limit_of(directory);
  for (absl::string_view part : absl::StrSplit(path, '/', absl::SkipEmpty())) {
    absl::StrAppend(&directory, "/", part);
    smallest = std::min(smallest, limit_of(directory));
  }
  return smallest;
}

// Of the process's cgroups, v2 and v1.
int64_t CgroupLimit(const std::string& root, const char* controller, LimitOf v2, LimitOf v1) {
  const std::string base = absl::StrCat(root, "/sys/fs/cgroup");
  const std::string cgroups = ReadFile(absl::StrCat(root, "/proc/self/cgroup"));
  int64_t smallest = kUnlimited;
  for (absl::string_view line : absl::StrSplit(cgroups, '\n')) {
    // hierarchy:controllers:path
    const std::vector<absl::string_view> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3) continue;
    const std::vector<absl::string_view> controllers = absl::StrSplit(parts[1], ',');
    if (parts[1].empty()) {
      smallest = std::min(smallest, SmallestLimit(base, parts[2], v2));
    } else if (std::count(controllers.begin(), controllers.end(), controller) > 0) {
      smallest = std::min(smallest, SmallestLimit(base + "/" + controller, parts[2], v1));
    }
  }
  return smallest;
}

}  // namespace

int64_t MemoryLimit(const std::string& root) {
  const int64_t machine =
      static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<int64_t>(sysconf(_SC_PAGESIZE));
  return std::min(machine, CgroupLimit(root, "memory", MemoryLimitV2, MemoryLimitV1));
}

int CpuLimit(const std::string& root) {
  const int64_t machine = std::max<int64_t>(1, std::thread::hardware_concurrency());
  return static_cast<int>(std::min(machine, CgroupLimit(root, "cpu", CpuLimitV2, CpuLimitV1)));
}

void RaiseDescriptorLimit() {
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

ProcessUse ReadProcessUse() {
  ProcessUse use;
  // /proc/self/stat has its fields from the third on after the name, which may have any character.
  const std::string stat = ReadFile("/proc/self/stat");
  const std::vector<std::string> fields =
      absl::StrSplit(stat.substr(std::min(stat.size(), stat.rfind(')') + 2)), ' ');
  const auto number = [&](size_t field) {
    int64_t value = 0;
    return fields.size() > field - 3 && absl::SimpleAtoi(fields[field - 3], &value) ? value : 0;
  };
  const auto ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  use.cpu_seconds = static_cast<double>(number(14) + number(15)) / ticks;
  use.resident_bytes = number(24) * sysconf(_SC_PAGESIZE);
  timespec now = {};
  timespec since_boot = {};
  clock_gettime(CLOCK_REALTIME, &now);
  clock_gettime(CLOCK_BOOTTIME, &since_boot);
  use.start_seconds = static_cast<double>(now.tv_sec - since_boot.tv_sec) +
                      static_cast<double>(now.tv_nsec - since_boot.tv_nsec) * 1e-9 +
                      static_cast<double>(number(22)) / ticks;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd", ignored)) {
    static_cast<void>(entry);
    ++use.open_files;
  }
  return use;
}

}  // namespace nni_compression::server
