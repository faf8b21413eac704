// What commands print and return.
#ifndef NNI_COMPRESSION_CLIENT_CLI_COMMAND_LINE_OUTPUT_H_
#define NNI_COMPRESSION_CLIENT_CLI_COMMAND_LINE_OUTPUT_H_

#include <string>

#include "absl/status/status.h"

namespace nni_compression::cli {

enum ExitStatus { kOk = 0, kFailed = 1, kBadUsage = 2 };

// Results go to stdout, errors to stderr: as text, or each as one line of JSON. Immutable;
// thread-safe.
class Output {
 public:
  explicit Output(bool json) : json_(json) {}

  bool json() const { return json_; }

  // Prints whichever of the two is wanted. kFailed when stdout cannot be written.
  int Print(const std::string& text, const std::string& json) const;

  // Prints the error and returns kFailed.
  int Fail(const absl::Status& status) const;

  // Prints what is wrong with a command line and returns kBadUsage. `command` is the command whose
  // help is pointed to: "prune", "tenant add", or empty.
  int BadUsage(const std::string& message, const std::string& command) const;

  // The error as Fail prints it, without a newline.
  std::string ErrorLine(const absl::Status& status) const;

 private:
  const bool json_;
};

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_COMMAND_LINE_OUTPUT_H_
