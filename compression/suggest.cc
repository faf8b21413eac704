#include "compression/suggest.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace nni_compression::compression {
namespace {

constexpr size_t kMaxWord = 64;
constexpr size_t kMaxKnown = 1024;
constexpr size_t kMaxShown = 120;

// Letters inserted, deleted, replaced or swapped with their neighbour.
size_t EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<size_t> before(b.size() + 1), above(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) above[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({above[j] + 1, row[j - 1] + 1, above[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before[j - 2] + 1);
      }
    }
    before.swap(above);
    above.swap(row);
  }
  return above[b.size()];
}

}  // namespace

std::string Suggestion(absl::string_view word, absl::Span<const std::string> known) {
  if (word.size() > kMaxWord) return "";
  const std::string folded = absl::AsciiStrToLower(word);
  const std::string* best = nullptr;
  size_t best_distance = (word.size() + 2) / 3 + 1;
  for (const std::string& candidate : known.first(std::min(known.size(), kMaxKnown))) {
    const size_t longer = std::max(word.size(), candidate.size());
    const size_t shorter = std::min(word.size(), candidate.size());
    if (longer - shorter >= best_distance) continue;
    const size_t distance = EditDistance(folded, absl::AsciiStrToLower(candidate));
    if (distance < best_distance && distance < candidate.size()) {
      best = &candidate;
      best_distance = distance;
    }
  }
  return best == nullptr ? "" : absl::StrCat("; did you mean `", *best, "`?");
}

std::string Shown(const nlohmann::json& value) {
  if (value.is_number_float() && !std::isfinite(value.get<double>())) {
    const double number = value.get<double>();
    return std::isnan(number) ? "nan" : number > 0 ? "inf" : "-inf";
  }
  std::string text =
      value.dump(-1, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace);
  if (text.size() > kMaxShown) text = absl::StrCat(text.substr(0, kMaxShown), "...");
  // 1.0 is how JSON tells a whole double from an integer; people wrote 1.
  if (value.is_number_float() && text.size() > 2 && text.substr(text.size() - 2) == ".0") {
    text.resize(text.size() - 2);
  }
  return text;
}

std::string Quoted(absl::string_view text) {
  // Escaping 100 KiB to show 120 bytes of it would be wasteful.
  return Shown(nlohmann::json(std::string(text.substr(0, 2 * kMaxShown))));
}

}  // namespace nni_compression::compression
