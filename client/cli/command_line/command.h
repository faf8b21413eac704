// A command of compressionctl.
#ifndef NNI_COMPRESSION_CLIENT_CLI_COMMAND_LINE_COMMAND_H_
#define NNI_COMPRESSION_CLIENT_CLI_COMMAND_LINE_COMMAND_H_

#include "absl/status/status.h"
#include "client/cli/command_line/output.h"

namespace nni_compression::cli {

// Its constructor takes a CLI::App& and adds its flags and arguments, by flags.h, to members of
// its own. Called from one thread: Check, then Run, once the flags have been read.
class Command {
 public:
  virtual ~Command() = default;

  // INVALID_ARGUMENT for what no flag alone can be wrong about, such as two that exclude each
  // other. Must not call a server.
  virtual absl::Status Check() const { return absl::OkStatus(); }

  // The exit status.
  virtual int Run(const Output& out) = 0;
};

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_COMMAND_LINE_COMMAND_H_
