// Reading a config_list from a file.
#ifndef NNI_COMPRESSION_CLIENT_CLI_CONFIG_H_
#define NNI_COMPRESSION_CLIENT_CLI_CONFIG_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace nni_compression::cli {

// The text as compact JSON. INVALID_ARGUMENT, with line and column, unless it is a list of objects;
// the server checks the objects.
absl::StatusOr<std::string> CheckConfigList(absl::string_view text);

// CheckConfigList of a file of at most 4 MiB; messages begin with the path.
absl::StatusOr<std::string> ReadConfigList(const std::string& path);

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_CONFIG_H_
