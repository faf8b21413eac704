// The words of a command line, sorted by the commands and flags that CLI11 knows.
#ifndef NNI_COMPRESSION_CLIENT_CLI_COMMAND_LINE_WORDS_H_
#define NNI_COMPRESSION_CLIENT_CLI_COMMAND_LINE_WORDS_H_

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace nni_compression::cli {

// CLI11 wants a command before its flags, but flags may stand before the command, too. Nothing is
// refused here: what no command knows is kept as it is.
struct Words {
  struct Flag {
    std::string name;  // with its dashes
    std::optional<std::string> value;
  };

  const CLI::App* command = nullptr;  // the innermost that is named; the root when none is
  std::vector<Flag> flags;
  std::vector<std::string> arguments;       // what is neither a command nor a flag
  const CLI::Option* incomplete = nullptr;  // the last flag, when its value is missing

  // Whether a flag that takes no value is there, and is not switched off by a value such as
  // "false". The last one counts.
  bool IsSet(absl::string_view flag) const;

  // The same words in the order that CLI11 reads.
  std::vector<std::string> InOrder() const;
};

Words ReadWords(const CLI::App& root, const std::vector<std::string>& words);

// "tenant add"; empty for the root.
std::string PathOf(const CLI::App& command);

// Commands in the order of the help.
std::vector<const CLI::App*> CommandsOf(const CLI::App& app);

// Names of the flags that a command has, or of all flags that its own commands have.
std::vector<std::string> FlagsOf(const CLI::App& app);

// The flag of a command, or of one of its own commands; null when none has it.
const CLI::Option* FindFlag(const CLI::App& app, const std::string& name);

std::vector<const CLI::Option*> ArgumentsOf(const CLI::App& command);

// Why words whose command has commands of its own name none of these: one that does not exist, with
// a suggestion, or nothing at all.
absl::Status UnknownCommand(const Words& words);

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_COMMAND_LINE_WORDS_H_
