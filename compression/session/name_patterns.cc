#include "compression/session/name_patterns.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {
namespace {

RE2::Options SetOptions() {
  RE2::Options options;
  options.set_max_mem(NamePatterns::kBytes);
  options.set_log_errors(false);
  return options;
}

constexpr int64_t kSizeOverLimit = NamePatterns::kMaxSize + 1;

// A class of Unicode, such as \pL, is hundreds of ranges.
constexpr int64_t kUnicodeClass = 512;

// An upper bound of the pattern's size once repetitions such as {2,5} are expanded; they may be
// nested, so their counts are multiplied.
int64_t ExpandedSize(const std::string& pattern) {
  int64_t bytes = static_cast<int64_t>(pattern.size());
  int64_t times = 1;
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] == '\\' && i + 1 < pattern.size()) {
      ++i;
      if (pattern[i] == 'p' || pattern[i] == 'P') bytes += kUnicodeClass;
      continue;
    }
    if (pattern[i] != '{') continue;
    int64_t most = 1;
    int64_t number = 0;
    for (++i; i < pattern.size() && (absl::ascii_isdigit(pattern[i]) || pattern[i] == ','); ++i) {
      number = pattern[i] == ',' ? 0 : std::min(number * 10 + (pattern[i] - '0'), kSizeOverLimit);
      most = std::max(most, number);
    }
    times = std::min(times * (most + 1), kSizeOverLimit);
  }
  return bytes * times;
}

}  // namespace

NamePatterns::NamePatterns() : set_(SetOptions(), RE2::ANCHOR_BOTH) {}

absl::Status NamePatterns::Add(const std::string& pattern, int rule, const std::string& path) {
  const std::string shown = absl::StrCat(path, " is ", Quoted(pattern));
  if (patterns_.size() == kMaxPatterns) {
    return absl::InvalidArgumentError(
        absl::StrCat(shown, "; a config_list may have at most ", kMaxPatterns, " patterns"));
  }
  if (pattern.empty() || pattern.size() > kMaxPatternBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, " has ", pattern.size(), " bytes; a pattern must have 1 to ", kMaxPatternBytes));
  }
  size_ += ExpandedSize(pattern);
  if (size_ > kMaxSize) {
    return absl::InvalidArgumentError(
        absl::StrCat(shown,
                     "; the patterns of a config_list, with repetitions such as {3} written out, "
                     "may have at most ",
                     kMaxSize, " bytes; use * or +, or fewer patterns"));
  }
  std::string error;
  if (set_.Add(pattern, &error) < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(shown, "; it must be a regular expression as RE2 has them: ", error));
  }
  patterns_.push_back({rule, shown});
  return absl::OkStatus();
}

absl::Status NamePatterns::Compile() {
  if (patterns_.empty() || set_.Compile()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the patterns of config_list take more than ", kBytes >> 20,
                   " MiB; use fewer of them, or smaller numbers of repetitions"));
}

absl::Status NamePatterns::Match(const std::string& name, std::vector<int>& rules) {
  if (patterns_.empty()) return absl::OkStatus();
  std::vector<int> matches;
  RE2::Set::ErrorInfo error{RE2::Set::kNoError};
  if (!set_.Match(name, &matches, &error) && error.kind != RE2::Set::kNoError) {
    return absl::InvalidArgumentError(absl::StrCat("the patterns of config_list take more than ",
                                                   kBytes >> 20, " MiB for the name ", Quoted(name),
                                                   "; use fewer or simpler ones"));
  }
  for (const int i : matches) {
    patterns_[i].matches = true;
    rules.push_back(patterns_[i].rule);
  }
  return absl::OkStatus();
}

std::vector<std::string> NamePatterns::Unmatched() const {
  std::vector<std::string> shown;
  for (const Pattern& pattern : patterns_) {
    if (!pattern.matches) shown.push_back(pattern.shown);
  }
  return shown;
}

}  // namespace nni_compression::compression
