// Completion of command lines in a shell: a short script asks `compressionctl __complete WORDS...`
// what may come next, so that it is always what this program takes.
#ifndef NNI_COMPRESSION_CLIENT_CLI_COMMAND_LINE_COMPLETION_H_
#define NNI_COMPRESSION_CLIENT_CLI_COMMAND_LINE_COMPLETION_H_

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "client/cli/command_line/flags.h"

namespace nni_compression::cli {

// The command of the scripts.
inline constexpr char kCompleteCommand[] = "__complete";

// A word that may replace the last one, and its meaning. An empty word tells the shell to offer
// files.
struct Completion {
  std::string word;
  std::string meaning;
};

// `words` follow the program's name; the last one is being typed, and may be empty.
std::vector<Completion> Complete(const CLI::App& root, std::vector<std::string> words);

// One completion per line: the word, a tab, its meaning.
std::string ToText(const std::vector<Completion>& completions);

// The shells that have a script.
std::vector<Choice> CompletionShells();

// What a user of one of these shells sources.
std::string CompletionScript(const std::string& shell);

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_COMMAND_LINE_COMPLETION_H_
