// Flags and arguments of the types that commands take. Of a flag that is given twice, the last
// value counts. The variables outlive the parsing, which writes them.
#ifndef NNI_COMPRESSION_CLIENT_CLI_COMMAND_LINE_FLAGS_H_
#define NNI_COMPRESSION_CLIENT_CLI_COMMAND_LINE_FLAGS_H_

#include <CLI/CLI.hpp>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace nni_compression::cli {

// A value that a flag or an argument may have.
struct Choice {
  std::string value;
  std::string meaning;  // empty where the value says it
};

// `name` is "--flag", "-f", or "NAME" for an argument; `type` is how the help names the value.
CLI::Option* AddText(CLI::App& app, const std::string& name, const std::string& type,
                     std::string* value, const std::string& description);

// Without the flag the value is nullopt; the flag may give an empty one.
CLI::Option* AddText(CLI::App& app, const std::string& name, const std::string& type,
                     std::optional<std::string>* value, const std::string& description);

// The description is completed by the choices with their meanings.
CLI::Option* AddChoice(CLI::App& app, const std::string& name, const std::string& type,
                       std::string* value, const std::vector<Choice>& choices,
                       const std::string& description);

CLI::Option* AddNumber(CLI::App& app, const std::string& name, std::optional<int64_t>* value,
                       const std::string& description);

// As absl::ParseDuration reads it: 2s, 500ms, 1m30s.
CLI::Option* AddDuration(CLI::App& app, const std::string& name, absl::Duration* value,
                         const std::string& description);

CLI::Option* AddSwitch(CLI::App& app, const std::string& name, bool* value,
                       const std::string& description);

// The flag --label, as KEY=VALUE,...; it may be given several times.
CLI::Option* AddLabels(CLI::App& app, std::map<std::string, std::string>* labels,
                       const std::string& description);

// A number of bytes: 2GB, 500MB, 1GiB, 1000000.
CLI::Option* AddSize(CLI::App& app, const std::string& name, int64_t* bytes,
                     const std::string& description);

// The flag --option, as NAME=VALUE; it may be given several times. A value that is JSON is read as
// such, any other is a string.
CLI::Option* AddFormatOptions(CLI::App& app, nlohmann::json* options,
                              const std::string& description);

// The values that an option is limited to; empty when there is no such limit.
std::vector<std::string> ChoicesOf(const CLI::Option& option);

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_COMMAND_LINE_FLAGS_H_
