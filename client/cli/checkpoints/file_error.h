// Errors of system calls.
#ifndef NNI_COMPRESSION_CLIENT_CLI_CHECKPOINTS_FILE_ERROR_H_
#define NNI_COMPRESSION_CLIENT_CLI_CHECKPOINTS_FILE_ERROR_H_

#include <cerrno>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace nni_compression::cli {

// "cannot open PATH: No such file or directory", with the code for the error.
inline absl::Status FileError(absl::string_view what, const std::string& path, int error = errno) {
  return absl::ErrnoToStatus(error, absl::StrCat("cannot ", what, " ", path));
}

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_CHECKPOINTS_FILE_ERROR_H_
