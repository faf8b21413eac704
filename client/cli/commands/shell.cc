// Help, and completion of command lines.
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "client/cli/command_line/completion.h"
#include "client/cli/command_line/flags.h"
#include "client/cli/command_line/help.h"
#include "client/cli/command_line/words.h"
#include "client/cli/commands/commands.h"

namespace nni_compression::cli {
namespace {

class CompletionCommand : public Command {
 public:
  explicit CompletionCommand(CLI::App& app) {
    AddChoice(app, "SHELL", "SHELL", &shell_, CompletionShells(), "bash, zsh or fish")->required();
    app.footer("For bash, ~/.bashrc gets the line\n  source <(compressionctl completion bash)");
  }

  int Run(const Output& out) override {
    const std::string script = CompletionScript(shell_);
    return out.Print(script, nlohmann::json({{"script", script}}).dump());
  }

 private:
  std::string shell_;
};

class HelpCommand : public Command {
 public:
  explicit HelpCommand(CLI::App& app) : root_(*app.get_parent()) {
    app.add_option("COMMAND", command_, "the command to explain; all of them without it");
    app.allow_extras();  // it does not matter what else the line says
  }

  int Run(const Output& out) override {
    const Words words = ReadWords(root_, command_);
    if (!words.arguments.empty() && !CommandsOf(*words.command).empty()) {
      return out.BadUsage(std::string(UnknownCommand(words).message()), PathOf(*words.command));
    }
    const std::string help = HelpOf(*words.command);
    return out.Print(help, nlohmann::json({{"help", help}}).dump());
  }

 private:
  const CLI::App& root_;
  std::vector<std::string> command_;
};

}  // namespace

void AddShellCommands(CommandLine& line) {
  constexpr char kHeading[] = "Shell";
  line.Add<CompletionCommand>(kHeading, "completion", "prints the completion script for a shell");
  line.Add<HelpCommand>(kHeading, "help", "shows this text, or that of a command");
}

}  // namespace nni_compression::cli
