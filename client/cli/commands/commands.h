// The commands of compressionctl, in one file for each heading of `compressionctl --help`. Each
// function adds the commands of its file.
#ifndef NNI_COMPRESSION_CLIENT_CLI_COMMANDS_COMMANDS_H_
#define NNI_COMPRESSION_CLIENT_CLI_COMMANDS_COMMANDS_H_

#include "client/cli/command_line/command_line.h"

namespace nni_compression::cli {

void AddServerCommands(CommandLine& line);
void AddSessionCommands(CommandLine& line);
void AddCheckpointCommands(CommandLine& line);
void AddDataDirectoryCommands(CommandLine& line);
void AddTenantCommands(CommandLine& line);
void AddShellCommands(CommandLine& line);

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_COMMANDS_COMMANDS_H_
