// Suggestions for misspelled words.
#ifndef NNI_COMPRESSION_CLIENT_CLI_COMMAND_LINE_SPELLING_H_
#define NNI_COMPRESSION_CLIENT_CLI_COMMAND_LINE_SPELLING_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace nni_compression::cli {

// "; did you mean prune?", or nothing when no candidate is close. Distance is Levenshtein's, and at
// most a third of the word's length.
std::string DidYouMean(absl::string_view word, const std::vector<std::string>& candidates);

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_COMMAND_LINE_SPELLING_H_
