// The regular expressions of a config_list that select layers by their names.
#ifndef NNI_COMPRESSION_COMPRESSION_SESSION_NAME_PATTERNS_H_
#define NNI_COMPRESSION_COMPRESSION_SESSION_NAME_PATTERNS_H_

#include <re2/re2.h>
#include <re2/set.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace nni_compression::compression {

// An op_name that begins with this is a pattern.
constexpr char kPatternPrefix[] = "re:";

// All patterns of a config_list, in RE2's syntax (https://github.com/google/re2/wiki/Syntax): a
// name matches when the pattern matches all of it. One pass over a name finds all patterns that
// match, in time linear in the name and in the size of the patterns, and in at most kBytes of
// memory.
class NamePatterns {
 public:
  static constexpr int64_t kBytes = 4 << 20;
  static constexpr int kMaxPatterns = 256;
  static constexpr size_t kMaxPatternBytes = 1024;
  // Of all patterns: their bytes, each as often as its pattern repeats it. RE2 expands repetitions
  // before it looks at its own limit.
  static constexpr int64_t kMaxSize = 8192;

  NamePatterns();

  // Adds a pattern of rule `rule`; `path` is the field that has it, for errors. INVALID_ARGUMENT
  // with the reason where it is too large, or not a regular expression, or one too many.
  absl::Status Add(const std::string& pattern, int rule, const std::string& path);

  // After the last Add, before the first Match. INVALID_ARGUMENT where all patterns together do not
  // fit into kBytes.
  absl::Status Compile();

  // Appends the rules of which a pattern matches the name; a rule may come several times.
  // INVALID_ARGUMENT where matching does not fit into kBytes.
  absl::Status Match(const std::string& name, std::vector<int>& rules);

  // "config_list[0].op_names_re[1] is \"...\"", of each pattern that has matched nothing.
  std::vector<std::string> Unmatched() const;

 private:
  struct Pattern {
    int rule;
    std::string shown;
    bool matches = false;
  };

  RE2::Set set_;
  std::vector<Pattern> patterns_;
  int64_t size_ = 0;
};

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_SESSION_NAME_PATTERNS_H_
