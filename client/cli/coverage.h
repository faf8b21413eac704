// Which part of a checkpoint is compressed, and what a user may not have meant.
#ifndef NNI_COMPRESSION_CLIENT_CLI_COVERAGE_H_
#define NNI_COMPRESSION_CLIENT_CLI_COVERAGE_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "client/cli/checkpoints/safetensors.h"
#include "nni/compression/v1/compression.pb.h"

namespace nni_compression::cli {

namespace v1 = ::nni::compression::v1;

// A weight is a tensor that is compressed, or one with two or more dimensions of a type that
// weights have: floating point of any size, and integers that may be quantized values.
struct Coverage {
  int64_t compressed = 0;
  int64_t weights = 0;
  int64_t compressed_parameters = 0;
  int64_t parameters = 0;             // numbers in all tensors of such types
  std::vector<std::string> left_out;  // weights that no rule compresses, the largest first
  std::vector<std::string> excluded;  // weights that a rule excludes
};

// The layers of the plan have the names of tensors.
Coverage CoverageOf(const SafetensorsHeader& header, const v1::Plan& plan);

nlohmann::json ToJson(const Coverage& coverage);
std::string ToText(const Coverage& coverage);  // a line

// A warning when embeddings or output heads are compressed by a rule of the config_list that does
// not choose layers by name; it has a rule that excludes them.
std::optional<std::string> EmbeddingsWarning(const SafetensorsHeader& header, const v1::Plan& plan,
                                             const nlohmann::json& config_list);

// The compressed weights of layers that hold their outputs in the last dimension, as Conv1D of
// transformers does. `model_type` is that of config.json.
std::vector<std::string> TransposedWeights(const SafetensorsHeader& header, const v1::Plan& plan,
                                           const std::string& model_type);

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_COVERAGE_H_
