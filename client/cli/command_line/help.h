// The text of --help.
#ifndef NNI_COMPRESSION_CLIENT_CLI_COMMAND_LINE_HELP_H_
#define NNI_COMPRESSION_CLIENT_CLI_COMMAND_LINE_HELP_H_

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace nni_compression::cli {

// Writes flags as they are typed, "--epoch=N", shows required flags in the first line, and wraps
// descriptions.
class HelpFormatter : public CLI::Formatter {
 public:
  HelpFormatter();

  std::string make_help(const CLI::App* app, std::string name,
                        CLI::AppFormatMode mode) const override;
  std::string make_usage(const CLI::App* app, std::string name) const override;
  std::string make_option(const CLI::Option* option, bool is_positional) const override;
  std::string make_subcommand(const CLI::App* app) const override;
};

// The help of a command, or of all of them for the root.
std::string HelpOf(const CLI::App& app);

// `text` in lines of at most `width` characters; longer words have a line of their own.
std::vector<std::string> Wrap(const std::string& text, size_t width);

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_COMMAND_LINE_HELP_H_
