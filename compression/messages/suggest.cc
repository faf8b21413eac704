#include "compression/messages/suggest.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace nni_compression::compression {
namespace {

constexpr size_t kMaxWord = 64;
constexpr size_t kMaxShown = 120;

// The Damerau-Levenshtein distance between `word` and another word, ignoring case: insertions,
// deletions, replacements and swaps of neighbouring letters. One step per letter of the other word,
// since a column of the usual table is stored as the bits of a few integers:
//
//   Hyyrö 2003, "A bit-vector algorithm for computing Levenshtein and Damerau edit distances"
class EditDistance {
 public:
  // `word` has 1 to 64 bytes.
  explicit EditDistance(absl::string_view word) : size_(word.size()) {
    for (size_t i = 0; i < word.size(); ++i) places_[Folded(word[i])] |= uint64_t{1} << i;
  }

  size_t To(absl::string_view other) const {
    uint64_t above = ~uint64_t{0};  // by one more than the place before it
    uint64_t below = 0;             // by one less
    uint64_t same = 0;              // as the place diagonally before it
    uint64_t last_places = 0;
    size_t distance = size_;
    const uint64_t end = uint64_t{1} << (size_ - 1);
    for (const char letter : other) {
      const uint64_t places = places_[Folded(letter)];
      const uint64_t swapped = ((~same & places) << 1) & last_places;
      same = (((places & above) + above) ^ above) | places | below | swapped;
      uint64_t more = below | ~(same | above);
      uint64_t less = same & above;
      if ((more & end) != 0) ++distance;
      if ((less & end) != 0) --distance;
      more = (more << 1) | 1;
      less <<= 1;
      above = less | ~(same | more);
      below = more & same;
      last_places = places;
    }
    return distance;
  }

 private:
  static uint8_t Folded(char letter) {
    return static_cast<uint8_t>(absl::ascii_tolower(static_cast<unsigned char>(letter)));
  }

  const size_t size_;
  std::array<uint64_t, 256> places_ = {};  // of each letter in the word
};

}  // namespace

std::string Suggestion(absl::string_view word, absl::Span<const std::string> known) {
  if (word.empty() || word.size() > kMaxWord) return "";
  const EditDistance distance_from_word(word);
  const std::string* best = nullptr;
  size_t best_distance = (word.size() + 2) / 3 + 1;
  for (const std::string& candidate : known.first(std::min(known.size(), kMaxSuggestions))) {
    const size_t longer = std::max(word.size(), candidate.size());
    const size_t shorter = std::min(word.size(), candidate.size());
    if (longer - shorter >= best_distance) continue;
    const size_t distance = distance_from_word.To(candidate);
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
  // JSON writes a whole double as 1.0; users wrote 1.
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
