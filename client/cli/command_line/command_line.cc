#include "client/cli/command_line/command_line.h"

#include <algorithm>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cli/command_line/completion.h"
#include "client/cli/command_line/flags.h"
#include "client/cli/command_line/help.h"
#include "client/cli/command_line/spelling.h"

namespace nni_compression::cli {
namespace {

constexpr char kFlags[] = "Flags";

// Words after a command are never subcommands. CheckWords checks that there are enough of them.
constexpr std::pair<size_t, size_t> kOneCommand = {0, 1};

absl::Status UnknownFlag(const CLI::App& command, const std::string& name) {
  const std::string path = PathOf(command);
  const std::string what = path.empty() ? absl::StrCat("there is no flag ", name)
                                        : absl::StrCat(path, " has no flag ", name);
  return absl::InvalidArgumentError(absl::StrCat(what, DidYouMean(name, FlagsOf(command))));
}

absl::Status CheckArgumentCount(const Words& words) {
  const std::vector<const CLI::Option*> arguments = ArgumentsOf(*words.command);
  const bool unlimited = std::any_of(arguments.begin(), arguments.end(), [](const auto* argument) {
    return argument->get_items_expected_max() > 1;
  });
  if (unlimited || words.arguments.size() <= arguments.size()) return absl::OkStatus();
  const std::string path = PathOf(*words.command);
  const std::string& extra = words.arguments[arguments.size()];
  if (arguments.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " takes no argument; it was given ", extra));
  }
  return absl::InvalidArgumentError(absl::StrCat(path, " takes ", arguments.size(), " argument",
                                                 arguments.size() == 1 ? "" : "s",
                                                 "; it was also given ", extra));
}

// Names the required flag or argument that is missing; an empty value counts as missing.
absl::Status CheckRequired(const CLI::App& command) {
  for (const CLI::Option* option : command.get_options()) {
    const std::vector<std::string>& values = option->results();
    if (!option->get_required() || (!values.empty() && !values.back().empty())) continue;
    return absl::InvalidArgumentError(absl::StrCat(PathOf(command), " needs ", option->get_name(),
                                                   ": ", option->get_description()));
  }
  return absl::OkStatus();
}

absl::Status CheckChoices(const CLI::App& command) {
  for (const CLI::Option* option : command.get_options()) {
    const std::vector<std::string> choices = ChoicesOf(*option);
    for (const std::string& value : option->results()) {
      if (choices.empty() || absl::c_linear_search(choices, value)) continue;
      return absl::InvalidArgumentError(
          absl::StrCat(option->get_name(), " is ", value, "; it must be one of ",
                       absl::StrJoin(choices, ", "), DidYouMean(value, choices)));
    }
  }
  return absl::OkStatus();
}

}  // namespace

CommandLine::CommandLine(std::string version)
    : version_(std::move(version)),
      root_("Compresses models with a compression server, from a shell.", "compressionctl") {
  root_.formatter(std::make_shared<HelpFormatter>());
  root_.option_defaults()->group(kFlags);
  root_.set_help_flag("-h,--help", "shows this text, or that of a command");
  root_.add_flag("--version", "prints the version");
  root_.footer(
      "`compressionctl COMMAND --help` shows the flags of a command. The exit status is 0 "
      "only when all\nof it worked, 1 when it failed, and 2 when the command line is "
      "wrong. Errors go to stderr.");
  root_.require_subcommand(kOneCommand.first, kOneCommand.second);
}

CLI::App& CommandLine::AddApp(const std::string& heading, const std::string& name,
                              const std::string& summary) {
  CLI::App* parent = &root_;
  const size_t space = name.find(' ');
  if (space != std::string::npos) parent = root_.get_subcommand(name.substr(0, space));
  CLI::App* const app =
      parent->add_subcommand(space == std::string::npos ? name : name.substr(space + 1), summary);
  app->group(heading);
  app->footer("");
  app->get_help_ptr()->group(kFlags);
  app->require_subcommand(kOneCommand.first, kOneCommand.second);
  return *app;
}

void CommandLine::AddFamily(const std::string& heading, const std::string& name,
                            const std::string& summary) {
  AddApp(heading, name, summary);
}

absl::Status CommandLine::CheckWords(const Words& words) const {
  for (const Words::Flag& flag : words.flags) {
    if (!words.command->get_allow_extras() && FindFlag(*words.command, flag.name) == nullptr) {
      return UnknownFlag(*words.command, flag.name);
    }
  }
  if (!CommandsOf(*words.command).empty()) return UnknownCommand(words);
  if (words.incomplete != nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(words.flags.back().name, " needs a value"));
  }
  return CheckArgumentCount(words);
}

absl::Status CommandLine::Parse(const Words& words) {
  std::vector<std::string> in_order = words.InOrder();
  std::reverse(in_order.begin(), in_order.end());  // as CLI11 wants them
  absl::Status parsed;
  try {
    root_.parse(in_order);
  } catch (const CLI::ParseError& error) {
    parsed = absl::InvalidArgumentError(error.what());
  }
  // Our words for the same errors name the command and the values that are allowed.
  if (absl::Status status = CheckChoices(*words.command); !status.ok()) return status;
  if (absl::Status status = CheckRequired(*words.command); !status.ok()) return status;
  return parsed;
}

int CommandLine::Run(const std::vector<std::string>& words) {
  const Output text(/*json=*/false);
  if (!words.empty() && words[0] == kCompleteCommand) {
    return text.Print(ToText(Complete(root_, {words.begin() + 1, words.end()})), "");
  }
  const Words read = ReadWords(root_, words);
  if (read.IsSet("--help") || read.IsSet("-h")) return text.Print(HelpOf(*read.command), "");
  if (read.IsSet("--version")) {
    return text.Print(absl::StrCat("compressionctl ", version_, "\n"), "");
  }
  const Output out(read.IsSet("--json"));
  absl::Status status = CheckWords(read);
  if (status.ok()) status = Parse(read);
  if (!status.ok()) return out.BadUsage(std::string(status.message()), PathOf(*read.command));
  Command& command = *commands_.at(read.command);
  status = command.Check();
  if (!status.ok()) return out.BadUsage(std::string(status.message()), PathOf(*read.command));
  return command.Run(out);
}

}  // namespace nni_compression::cli
