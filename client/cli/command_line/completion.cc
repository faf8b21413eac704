#include "client/cli/command_line/completion.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/cli/command_line/words.h"

namespace nni_compression::cli {
namespace {

constexpr char kBash[] = R"sh(# Completion for bash:
#   source <(compressionctl completion bash)
_compressionctl() {
  # COMP_WORDS is split at "=" and ":", too.
  local line=${COMP_LINE:0:COMP_POINT} words
  read -ra words <<<"$line"
  if [[ $line == *[[:space:]] ]]; then words+=(""); fi
  local IFS=$'\n'
  COMPREPLY=($("${words[0]/#\~/$HOME}" __complete "${words[@]:1}" 2>/dev/null))
  COMPREPLY=("${COMPREPLY[@]%%$'\t'*}")
  if [[ ${words[-1]} == --*=* ]]; then COMPREPLY=("${COMPREPLY[@]#*=}"); fi
}
complete -o default -F _compressionctl compressionctl
)sh";

constexpr char kZsh[] = R"sh(#compdef compressionctl
# Completion for zsh:
#   source <(compressionctl completion zsh)
# or a file _compressionctl in a folder of $fpath.
_compressionctl() {
  local -a found
  found=(${(f)"$(${~words[1]} __complete "${(@)words[2,CURRENT]}" 2>/dev/null)"})
  if (( ! $#found )); then
    _files
    return
  fi
  found=("${(@)found//:/\\:}")
  found=("${(@)found/$'\t'/:}")
  _describe compressionctl found
}
if [[ ${funcstack[1]} == _compressionctl ]]; then
  _compressionctl "$@"
else
  compdef _compressionctl compressionctl
fi
)sh";

constexpr char kFish[] = R"sh(# Completion for fish:
#   compressionctl completion fish | source
function __compressionctl_complete
    set -l words (commandline -opc) (commandline -ct)
    $words[1] __complete $words[2..-1] 2>/dev/null
end
complete -c compressionctl -a '(__compressionctl_complete)'
)sh";

// Of a text, what fits on a line next to a word.
std::string FirstLine(const std::string& text) { return text.substr(0, text.find('\n')); }

std::vector<Completion> Values(const CLI::Option& option, const std::string& before) {
  const std::vector<std::string> choices = ChoicesOf(option);
  std::vector<Completion> values;
  values.reserve(choices.size());
  for (const std::string& value : choices) values.push_back({before + value, ""});
  return values;
}

std::vector<Completion> Candidates(const CLI::App& root, const Words& words,
                                   const std::string& current) {
  if (words.incomplete != nullptr) return Values(*words.incomplete, "");
  const size_t equals = current.find('=');
  if (absl::StartsWith(current, "-") && equals != std::string::npos) {
    const CLI::Option* const flag = FindFlag(*words.command, current.substr(0, equals));
    if (flag == nullptr) return {};
    return Values(*flag, current.substr(0, equals + 1));
  }
  std::vector<Completion> candidates;
  if (absl::StartsWith(current, "-")) {
    for (const std::string& name : FlagsOf(*words.command)) {
      candidates.push_back({name, FirstLine(FindFlag(*words.command, name)->get_description())});
    }
    return candidates;
  }
  if (words.arguments.empty()) {
    for (const CLI::App* command : CommandsOf(*words.command)) {
      candidates.push_back({command->get_name(), FirstLine(command->get_description())});
    }
  }
  const std::vector<const CLI::Option*> arguments = ArgumentsOf(*words.command);
  if (words.arguments.size() < arguments.size()) {
    const auto values = Values(*arguments[words.arguments.size()], "");
    candidates.insert(candidates.end(), values.begin(), values.end());
  }
  return candidates;
}

}  // namespace

std::vector<Completion> Complete(const CLI::App& root, std::vector<std::string> words) {
  if (words.empty()) words.emplace_back();
  const std::string current = words.back();
  words.pop_back();
  std::vector<Completion> completions = Candidates(root, ReadWords(root, words), current);
  completions.erase(std::remove_if(completions.begin(), completions.end(),
                                   [&](const Completion& completion) {
                                     return !absl::StartsWith(completion.word, current);
                                   }),
                    completions.end());
  return completions;
}

std::string ToText(const std::vector<Completion>& completions) {
  std::string text;
  for (const Completion& completion : completions) {
    absl::StrAppend(&text, completion.word, "\t", completion.meaning, "\n");
  }
  return text;
}

std::vector<Choice> CompletionShells() { return {{"bash", ""}, {"zsh", ""}, {"fish", ""}}; }

std::string CompletionScript(const std::string& shell) {
  return shell == "bash" ? kBash : shell == "zsh" ? kZsh : kFish;
}

}  // namespace nni_compression::cli
