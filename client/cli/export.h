// The last part of prune and quantize, and export: a session's result as files.
#ifndef NNI_COMPRESSION_CLIENT_CLI_EXPORT_H_
#define NNI_COMPRESSION_CLIENT_CLI_EXPORT_H_

#include <cstdint>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cli/checkpoints/checkpoint.h"
#include "client/cli/checkpoints/model_config.h"
#include "client/cli/checkpoints/model_files.h"
#include "client/cli/progress.h"
#include "nni_compression/client.h"

namespace nni_compression::cli {

// What a result is written as, and where.
struct OutputJob {
  std::string directory;
  std::string format = "safetensors";
  bool overwrite = false;  // files of the output directory may be replaced
  // Of the format, for the server, which checks them; max_shard_bytes is read here.
  nlohmann::json options = nlohmann::json::object();
  int64_t max_shard_bytes = 0;    // 0: one file, or as large as the input's shards
  std::FILE* progress = nullptr;  // where a progress bar may be drawn
};

struct ExportJob {
  std::string session_id;
  std::string input_path;  // empty for the format "masks"
  OutputJob output;
};

struct ExportResult {
  std::vector<std::string> files;
  std::vector<std::string> copied;      // names of files that belong to the model
  std::vector<std::string> not_copied;  // those that do not belong to a copy of it
  std::vector<std::string> warnings;
  int64_t sent_bytes = 0;  // tensor payload
};

// A model on disk.
struct Model {
  ModelFiles files;
  Checkpoint checkpoint;
  std::optional<ModelConfig> config;
};

// FindModel, with the files opened. INVALID_ARGUMENT, before anything is computed, for an output
// that would replace the input, or a format that the model cannot get.
absl::StatusOr<Model> OpenModel(const std::string& path, const OutputJob& output);

// Streams the session's result to output.directory. Only the weights of compressed layers are sent
// if the format allows it; the weight of a layer NAME is the tensor NAME or NAME.weight. The result
// of a model with a folder is such a folder, for formats that hold all of a model's tensors and can
// be loaded from one. When it fails, existing files are unchanged.
absl::StatusOr<ExportResult> ExportCheckpoint(const Session& session, const Model& model,
                                              const OutputJob& output);

// Runs the job; the session stays open.
absl::StatusOr<ExportResult> Export(const Client& client, const ExportJob& job);

nlohmann::json ToJson(const ExportResult& result);
std::string ToText(const ExportResult& result);

// Lines about what was written, copied and left out; warnings are not in them.
std::string FilesText(const ExportResult& result);

int64_t TotalBytes(absl::Span<const Tensor> tensors);

// The weights of compressed layers under the names of the layers, in the order of a checkpoint;
// they refer to it.
std::vector<Tensor> WeightsOf(const Checkpoint& checkpoint, const v1::Plan& plan);

// Options of a call that sends tensors of a checkpoint, after `before` of `total` bytes, which
// shows its progress. Bar and checkpoint outlive the call.
CallOptions SendingOptions(ProgressBar& bar, const Checkpoint& checkpoint, int64_t before,
                           int64_t total);

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_EXPORT_H_
