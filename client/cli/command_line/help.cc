#include "client/cli/command_line/help.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "client/cli/command_line/words.h"

namespace nni_compression::cli {
namespace {

constexpr size_t kTextColumn = 27;
constexpr size_t kTextWidth = 100 - kTextColumn;

// "--epoch=N", "-o DIR", "--overwrite".
std::string Typed(const CLI::Option& flag) {
  if (flag.get_items_expected_max() == 0) return flag.get_name(false, true);
  const std::string type = flag.get_type_name();
  return absl::StrCat(flag.get_name(), flag.get_lnames().empty() ? " " : "=",
                      type.substr(0, type.find(":{")));
}

std::string Entry(const std::string& name, const std::string& text) {
  std::string entry = absl::StrCat("  ", name);
  if (entry.size() + 1 > kTextColumn) absl::StrAppend(&entry, "\n");
  size_t column = entry.back() == '\n' ? 0 : entry.size();
  for (const std::string& line : Wrap(text, kTextWidth)) {
    absl::StrAppend(&entry, std::string(kTextColumn - column, ' '), line, "\n");
    column = 0;
  }
  return entry;
}

}  // namespace

HelpFormatter::HelpFormatter() { label("Positionals", "Arguments"); }

std::string HelpFormatter::make_help(const CLI::App* app, std::string name,
                                     CLI::AppFormatMode mode) const {
  std::string text = CLI::Formatter::make_help(app, std::move(name), mode);
  text = absl::StrReplaceAll(text, {{"\n\n\n", "\n\n"}});
  return absl::StrCat(absl::StripTrailingAsciiWhitespace(text), "\n");
}

std::string HelpFormatter::make_usage(const CLI::App* app, std::string) const {
  const std::string path = PathOf(*app);
  std::string usage = absl::StrCat("\nUsage: compressionctl", path.empty() ? "" : " ", path);
  for (const CLI::Option* flag : app->get_options()) {
    if (flag->nonpositional() && flag->get_required()) absl::StrAppend(&usage, " ", Typed(*flag));
  }
  absl::StrAppend(&usage, " [FLAGS]");
  for (const CLI::Option* argument : ArgumentsOf(*app)) {
    absl::StrAppend(&usage, " ", make_option_usage(argument));
  }
  if (!CommandsOf(*app).empty()) absl::StrAppend(&usage, " COMMAND");
  return absl::StrCat(usage, "\n");
}

std::string HelpFormatter::make_option(const CLI::Option* option, bool is_positional) const {
  std::string text = option->get_description();
  if (!option->get_default_str().empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    text.insert(end, absl::StrCat(" (default: ", option->get_default_str(), ")"));
  }
  return Entry(is_positional ? option->get_name(true) : Typed(*option), text);
}

std::string HelpFormatter::make_subcommand(const CLI::App* app) const {
  std::string name = app->get_name();
  for (const CLI::Option* argument : ArgumentsOf(*app)) {
    absl::StrAppend(&name, " ", make_option_usage(argument));
  }
  return Entry(name, app->get_description());
}

// Not app.help(), which is that of a subcommand once one has been read.
std::string HelpOf(const CLI::App& app) {
  return app.get_formatter()->make_help(&app, app.get_name(), CLI::AppFormatMode::Normal);
}

std::vector<std::string> Wrap(const std::string& text, size_t width) {
  std::vector<std::string> lines;
  for (const absl::string_view paragraph : absl::StrSplit(text, '\n')) {
    lines.emplace_back();
    for (const absl::string_view word : absl::StrSplit(paragraph, ' ')) {
      if (!lines.back().empty() && lines.back().size() + 1 + word.size() > width) {
        lines.emplace_back();
      }
      absl::StrAppend(&lines.back(), lines.back().empty() ? "" : " ", word);
    }
  }
  return lines;
}

}  // namespace nni_compression::cli
