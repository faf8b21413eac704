#include "client/cli/command_line/words.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cli/command_line/spelling.h"

namespace nni_compression::cli {
namespace {

constexpr char kOnlyArguments[] = "--";

bool IsFlag(absl::string_view word) { return word.size() > 1 && word[0] == '-'; }

bool TakesValue(const CLI::Option* flag) {
  return flag != nullptr && flag->get_items_expected_max() > 0;
}

std::vector<std::string> NamesOf(const std::vector<const CLI::App*>& commands) {
  std::vector<std::string> names;
  names.reserve(commands.size());
  for (const CLI::App* command : commands) names.push_back(command->get_name());
  return names;
}

}  // namespace

bool Words::IsSet(absl::string_view flag) const {
  const auto last = std::find_if(flags.rbegin(), flags.rend(),
                                 [&](const Flag& each) { return each.name == flag; });
  if (last == flags.rend()) return false;
  // The values of a flag that CLI11 takes for false.
  constexpr absl::string_view kFalse[] = {"false", "off", "no", "disable", "0", "f", "n", "-"};
  const std::string value = absl::AsciiStrToLower(last->value.value_or("true"));
  return std::find(std::begin(kFalse), std::end(kFalse), value) == std::end(kFalse);
}

std::vector<std::string> Words::InOrder() const {
  std::vector<std::string> words;
  for (const CLI::App* app = command; app->get_parent() != nullptr; app = app->get_parent()) {
    words.insert(words.begin(), app->get_name());
  }
  for (const Flag& flag : flags) {
    if (!flag.value || TakesValue(FindFlag(*command, flag.name))) {
      words.push_back(flag.name);
      // As a word of its own, since CLI11 takes the next word for the value of "--flag=".
      if (flag.value) words.push_back(*flag.value);
    } else {
      words.push_back(absl::StrCat(flag.name, "=", *flag.value));
    }
  }
  if (std::any_of(arguments.begin(), arguments.end(), IsFlag)) words.push_back(kOnlyArguments);
  words.insert(words.end(), arguments.begin(), arguments.end());
  return words;
}

Words ReadWords(const CLI::App& root, const std::vector<std::string>& words) {
  Words read;
  read.command = &root;
  bool only_arguments = false;
  for (auto word = words.begin(); word != words.end(); ++word) {
    if (!only_arguments && *word == kOnlyArguments) {
      only_arguments = true;
    } else if (!only_arguments && IsFlag(*word)) {
      const size_t equals = word->find('=');
      Words::Flag flag = {word->substr(0, equals), std::nullopt};
      if (equals != std::string::npos) {
        flag.value = word->substr(equals + 1);
      } else if (const CLI::Option* known = FindFlag(root, flag.name); TakesValue(known)) {
        if (word + 1 == words.end()) {
          read.incomplete = known;
        } else {
          flag.value = *++word;
        }
      }
      read.flags.push_back(std::move(flag));
    } else {
      const std::vector<const CLI::App*> commands = CommandsOf(*read.command);
      const auto found = std::find_if(commands.begin(), commands.end(), [&](const CLI::App* app) {
        return app->get_name() == *word;
      });
      if (found != commands.end() && read.arguments.empty()) {
        read.command = *found;
      } else {
        read.arguments.push_back(*word);
      }
    }
  }
  return read;
}

std::string PathOf(const CLI::App& command) {
  if (command.get_parent() == nullptr) return "";
  const std::string parent = PathOf(*command.get_parent());
  return parent.empty() ? command.get_name() : absl::StrCat(parent, " ", command.get_name());
}

std::vector<const CLI::App*> CommandsOf(const CLI::App& app) {
  return app.get_subcommands(std::function<bool(const CLI::App*)>());
}

std::vector<std::string> FlagsOf(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    if (option->nonpositional()) names.push_back(option->get_name());
  }
  for (const CLI::App* command : CommandsOf(app)) {
    for (const std::string& name : FlagsOf(*command)) {
      if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    }
  }
  return names;
}

const CLI::Option* FindFlag(const CLI::App& app, const std::string& name) {
  if (!IsFlag(name)) return nullptr;
  if (const CLI::Option* option = app.get_option_no_throw(name)) return option;
  for (const CLI::App* command : CommandsOf(app)) {
    if (const CLI::Option* option = FindFlag(*command, name)) return option;
  }
  return nullptr;
}

std::vector<const CLI::Option*> ArgumentsOf(const CLI::App& command) {
  return command.get_options([](const CLI::Option* option) { return option->get_positional(); });
}

absl::Status UnknownCommand(const Words& words) {
  const std::vector<std::string> names = NamesOf(CommandsOf(*words.command));
  const std::string path = PathOf(*words.command);
  if (!words.arguments.empty()) {
    const std::string& name = words.arguments[0];
    return absl::InvalidArgumentError(absl::StrCat(path.empty() ? "there is" : path + " has",
                                                   " no command ", name, DidYouMean(name, names)));
  }
  if (path.empty()) return absl::InvalidArgumentError("there is no command");
  return absl::InvalidArgumentError(
      absl::StrCat(path, " needs a command: ", absl::StrJoin(names, ", ")));
}

}  // namespace nni_compression::cli
