#include "client/cli/command_line/spelling.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"

namespace nni_compression::cli {
namespace {

// https://en.wikipedia.org/wiki/Levenshtein_distance, row by row.
size_t EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0]++;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

}  // namespace

std::string DidYouMean(absl::string_view word, const std::vector<std::string>& candidates) {
  constexpr size_t kMaxLength = 100;
  if (word.size() > kMaxLength) return "";
  std::string closest;
  size_t least = std::max<size_t>(1, word.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    const size_t distance = EditDistance(word, candidate);
    if (distance >= least) continue;
    least = distance;
    closest = candidate;
  }
  return closest.empty() ? "" : absl::StrCat("; did you mean ", closest, "?");
}

}  // namespace nni_compression::cli
