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

// Streams the session's result into job.output_directory; `session_id` and `input_path` are not
// looked at. Of a checkpoint only the weights of compressed layers travel where the format allows
// it; a layer NAME's weight is its tensor NAME or NAME.weight. Old files stay as they are when it
// fails.
absl::StatusOr<ExportResult> ExportCheckpoint(const Session& session, const SafetensorsFile& file,
                                              const ExportJob& job);

// The job, of a session that lives on.
absl::StatusOr<ExportResult> Export(const Client& client, const ExportJob& job);

nlohmann::json ToJson(const ExportResult& result);
std::string ToText(const ExportResult& result);

// INVALID_ARGUMENT when files of the output would replace the input.
absl::Status CheckOutput(const std::string& input_path, const std::string& output_directory);

// The compressed layers' weights under their layers' names, in the order of a checkpoint; they
// refer to the file.
std::vector<Tensor> WeightsOf(const SafetensorsFile& file, const v1::Plan& plan);

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_EXPORT_H_
