// Pieces of error messages.
#ifndef NNI_COMPRESSION_COMPRESSION_MESSAGES_SUGGEST_H_
#define NNI_COMPRESSION_COMPRESSION_MESSAGES_SUGGEST_H_

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace nni_compression::compression {

// How many of the known words are compared.
constexpr size_t kMaxSuggestions = 1024;

// "; did you mean `op_names`?" when one of `known` is within a typing error of `word` (about one
// letter in three, ignoring case), "" otherwise. Compares only the first thousand, and no long
// words, so that its time is bounded.
std::string Suggestion(absl::string_view word, absl::Span<const std::string> known);

// A value as a message shows it: JSON in printable form, cut when long. Numbers are "1.3", "nan";
// strings have quotes.
std::string Shown(const nlohmann::json& value);
std::string Quoted(absl::string_view text);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_MESSAGES_SUGGEST_H_
