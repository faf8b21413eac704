#include "server/machine.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <sstream>
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

// The number in `path`; "max" and files that are not there limit nothing.
int64_t ReadLimit(const std::string& path) {
  int64_t limit = 0;
  if (!absl::SimpleAtoi(absl::StripAsciiWhitespace(ReadFile(path)), &limit) || limit <= 0) {
    return std::numeric_limits<int64_t>::max();
  }
  return limit;
}

// The limit of the cgroup at `path` below `base` and of all that it lies in.
int64_t SmallestLimit(const std::string& base, absl::string_view path, absl::string_view file) {
  int64_t smallest = std::numeric_limits<int64_t>::max();
  std::string directory = base;
  smallest = std::min(smallest, ReadLimit(absl::StrCat(directory, "/", file)));
  for (absl::string_view part : absl::StrSplit(path, '/', absl::SkipEmpty())) {
    absl::StrAppend(&directory, "/", part);
    smallest = std::min(smallest, ReadLimit(absl::StrCat(directory, "/", file)));
  }
  return smallest;
}

int64_t CgroupLimit(const std::string& root) {
  const std::string base = absl::StrCat(root, "/sys/fs/cgroup");
  int64_t smallest = std::numeric_limits<int64_t>::max();
  for (absl::string_view line :
       absl::StrSplit(ReadFile(absl::StrCat(root, "/proc/self/cgroup")), '\n')) {
    // hierarchy:controllers:path
    const std::vector<absl::string_view> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3) continue;
    const std::vector<absl::string_view> controllers = absl::StrSplit(parts[1], ',');
    if (parts[1].empty()) {
      smallest = std::min(smallest, SmallestLimit(base, parts[2], "memory.max"));
    } else if (std::count(controllers.begin(), controllers.end(), "memory") > 0) {
      smallest =
          std::min(smallest, SmallestLimit(base + "/memory", parts[2], "memory.limit_in_bytes"));
    }
  }
  return smallest;
}

}  // namespace

int64_t MemoryLimit(const std::string& root) {
  const int64_t machine =
      static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<int64_t>(sysconf(_SC_PAGESIZE));
  return std::min(machine, CgroupLimit(root));
}

absl::StatusOr<int64_t> ParseBytes(absl::string_view text) {
  absl::string_view digits = absl::StripAsciiWhitespace(text);
  int64_t unit = 1;
  for (const auto& [suffix, bytes] : {std::pair<absl::string_view, int64_t>("K", int64_t{1} << 10),
                                      {"M", int64_t{1} << 20},
                                      {"G", int64_t{1} << 30}}) {
    if (absl::ConsumeSuffix(&digits, suffix)) {
      unit = bytes;
      break;
    }
  }
  int64_t number = 0;
  if (!absl::SimpleAtoi(digits, &number) || number < 0 ||
      number > std::numeric_limits<int64_t>::max() / unit) {
    return absl::InvalidArgumentError(absl::StrCat(
        "'", text, "' is no number of bytes; it must be like 1000000, 512K, 64M or 4G"));
  }
  return number * unit;
}

}  // namespace nni_compression::server
