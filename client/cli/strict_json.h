// JSON without duplicate names.
#ifndef NNI_COMPRESSION_CLIENT_CLI_STRICT_JSON_H_
#define NNI_COMPRESSION_CLIENT_CLI_STRICT_JSON_H_

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace nni_compression::cli {

// Parses JSON. INVALID_ARGUMENT, with line and column, for text that is not JSON, for a duplicate
// name in an object (the library would silently keep the last one), and for nesting deeper than
// `max_depth`.
absl::StatusOr<nlohmann::json> ParseStrictJson(absl::string_view text, int max_depth);

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_STRICT_JSON_H_
