// The commands of compressionctl, and how one of them is chosen, checked and run.
#ifndef NNI_COMPRESSION_CLIENT_CLI_COMMAND_LINE_COMMAND_LINE_H_
#define NNI_COMPRESSION_CLIENT_CLI_COMMAND_LINE_COMMAND_LINE_H_

#include <CLI/CLI.hpp>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/cli/command_line/command.h"
#include "client/cli/command_line/words.h"

namespace nni_compression::cli {

// CLI11 holds commands and flags, converts values and checks them one by one; help and completion
// are made from what it holds. Thread-compatible.
class CommandLine {
 public:
  explicit CommandLine(std::string version);

  // Adds a command; `heading` is the one that it has in the help. `name` may be that of a family
  // and the command's own: "tenant add".
  template <typename C>
  void Add(const std::string& heading, const std::string& name, const std::string& summary) {
    CLI::App& app = AddApp(heading, name, summary);
    commands_[&app] = std::make_unique<C>(app);
    app.add_flag("--json", "prints JSON on one line, errors included");
  }

  // Adds a name that only has commands of its own.
  void AddFamily(const std::string& heading, const std::string& name, const std::string& summary);

  // Runs the command that `words`, without the program's name, ask for; the exit status.
  int Run(const std::vector<std::string>& words);

  const CLI::App& app() const { return root_; }

 private:
  CLI::App& AddApp(const std::string& heading, const std::string& name, const std::string& summary);
  // INVALID_ARGUMENT unless there is a command that takes such flags and as many arguments.
  absl::Status CheckWords(const Words& words) const;
  // Lets CLI11 read them into the command's members.
  absl::Status Parse(const Words& words);

  const std::string version_;
  CLI::App root_;
  std::map<const CLI::App*, std::unique_ptr<Command>> commands_;
};

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_COMMAND_LINE_COMMAND_LINE_H_
