// The last part of prune and quantize, and export: a session's result as files.
#ifndef NNI_COMPRESSION_CLIENT_CLI_EXPORT_H_
#define NNI_COMPRESSION_CLIENT_CLI_EXPORT_H_

#include <cstdint>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cli/safetensors.h"
#include "nni_compression/client.h"

namespace nni_compression::cli {

struct ExportJob {
  std::string session_id;
  std::string input_path;  // empty for the format "masks"
  std::string output_directory;
  std::string format = "safetensors";
  bool overwrite = false;         // files of the output directory may be replaced
  std::FILE* progress = nullptr;  // where a progress bar may be drawn
};

struct ExportResult {
  std::vector<std::string> files;
  std::vector<std::string> warnings;
  int64_t sent_bytes = 0;  // tensor payload
};

// Streams the session's result to job.output_directory; `session_id` and `input_path` are not used.
// Only the weights of compressed layers are sent if the format allows it; the weight of a layer
// NAME is the tensor NAME or NAME.weight. When it fails, existing files are unchanged.
absl::StatusOr<ExportResult> ExportCheckpoint(const Session& session, const SafetensorsFile& file,
                                              const ExportJob& job);

// Runs the job; the session stays open.
absl::StatusOr<ExportResult> Export(const Client& client, const ExportJob& job);

nlohmann::json ToJson(const ExportResult& result);
std::string ToText(const ExportResult& result);

// INVALID_ARGUMENT when an output file would replace the input.
absl::Status CheckOutput(const std::string& input_path, const std::string& output_directory);

// The weights of compressed layers under the names of the layers, in the order of a checkpoint;
// they refer to the file.
std::vector<Tensor> WeightsOf(const SafetensorsFile& file, const v1::Plan& plan);

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_EXPORT_H_
