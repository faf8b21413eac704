// Finds the files of a model: its weights, and what belongs to it.
#ifndef NNI_COMPRESSION_CLIENT_CLI_CHECKPOINTS_MODEL_FILES_H_
#define NNI_COMPRESSION_CLIENT_CLI_CHECKPOINTS_MODEL_FILES_H_

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/cli/checkpoints/index.h"

namespace nni_compression::cli {

inline constexpr char kConfigFile[] = "config.json";

struct ModelFiles {
  std::string folder;                // of the model; empty for a single .safetensors file
  std::string stem = "model";        // of the names of the weights' files
  std::vector<std::string> weights;  // paths of .safetensors files
  std::optional<CheckpointIndex> index;

  // Files next to the weights, by their names in the folder, such as "1_Pooling/config.json":
  // those that belong to every copy of the model, and those that do not: weights in other formats,
  // which would not be those of the copy, checkpoints of a training, and hidden folders. A folder
  // of such files is one name that ends with a slash.
  std::vector<std::string> others;
  std::vector<std::string> left_out;
};

// `path` is a .safetensors file, the index of shards, or a folder with model.safetensors or
// model.safetensors.index.json. INVALID_ARGUMENT for anything else, and for links that lead out of
// the folder, unless they are those of Hugging Face's cache.
absl::StatusOr<ModelFiles> FindModel(const std::string& path);

// Permissions of a model on disk, for the one that is made of it.
struct Permissions {
  std::optional<mode_t> files;  // those that all files of weights give; unset: of any new file
  mode_t folder = 0777;
};

Permissions PermissionsOf(const ModelFiles& model);

// Read, write and execute of a file or folder; unset when it cannot be told.
std::optional<mode_t> ModeOf(const std::string& path);

// The content of a small file, such as a configuration. INVALID_ARGUMENT when it is large.
absl::StatusOr<std::string> ReadText(const std::string& path);

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_CHECKPOINTS_MODEL_FILES_H_
