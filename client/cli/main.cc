// compressionctl.
#include "client/cli/command_line/command_line.h"
#include "client/cli/commands/commands.h"

int main(int argc, char** argv) {
  nni_compression::cli::CommandLine line(NNI_COMPRESSION_VERSION);
  nni_compression::cli::AddServerCommands(line);
  nni_compression::cli::AddSessionCommands(line);
  nni_compression::cli::AddCheckpointCommands(line);
  nni_compression::cli::AddDataDirectoryCommands(line);
  nni_compression::cli::AddTenantCommands(line);
  nni_compression::cli::AddShellCommands(line);
  return line.Run({argv + 1, argv + argc});
}
