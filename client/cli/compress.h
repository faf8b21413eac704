// prune and quantize: a checkpoint on disk to a compressed one.
#ifndef NNI_COMPRESSION_CLIENT_CLI_COMPRESS_H_
#define NNI_COMPRESSION_CLIENT_CLI_COMPRESS_H_

#include <cstdint>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cli/checkpoints/safetensors.h"
#include "client/cli/coverage.h"
#include "client/cli/export.h"
#include "nni/compression/v1/compression.pb.h"
#include "nni_compression/client.h"

namespace nni_compression::cli {

namespace v1 = ::nni::compression::v1;

struct CompressJob {
  v1::AlgorithmKind kind = v1::ALGORITHM_KIND_PRUNER;  // the kind that the algorithm must have
  std::string algorithm;
  std::string config_path;
  std::string input_path;
  OutputJob output;
  std::optional<int64_t> epoch;  // unset: where the rules end
  std::optional<int64_t> step;   // unset: where quantization begins or the rules end
  std::map<std::string, std::string> labels;
};

// The layers of a checkpoint without its model: tensors of a weight's dtype with at least one
// dimension. Those named *.weight with two or more dimensions have op_type "weight", which is what
// "default" matches for the framework "generic"; all others have "other".
std::vector<Layer> LayersOf(const SafetensorsHeader& header);

// The largest value of an integer option over the plan's rules.
std::optional<int64_t> LargestOption(const v1::Plan& plan, const std::string& option);

struct LayerOutcome {
  std::string name;
  std::vector<int64_t> shape;
  int64_t elements = 0;
  absl::Status status;
  std::optional<double> target_sparsity;
  std::optional<double> achieved_sparsity;
  std::optional<int> bits;  // quantizers; unset: not quantized at this step
};

struct CompressResult {
  std::string session_id;
  std::vector<std::string> warnings;
  std::vector<LayerOutcome> layers;  // the compressed ones, in the new file's order
  Coverage coverage;
  ExportResult
      exported;  // no files unless all layers succeeded; sent_bytes are those of both passes
  double seconds = 0;
};

// Runs the job in a session of its own. An error concerns the whole job; layers may have errors of
// their own, and then nothing is written.
absl::StatusOr<CompressResult> Compress(const Client& client, const CompressJob& job);

nlohmann::json ToJson(const CompressResult& result);
std::string ToText(const CompressResult& result);

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_COMPRESS_H_
