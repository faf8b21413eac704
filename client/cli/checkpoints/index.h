// The index of a checkpoint in several files, model.safetensors.index.json.
#ifndef NNI_COMPRESSION_CLIENT_CLI_CHECKPOINTS_INDEX_H_
#define NNI_COMPRESSION_CLIENT_CLI_CHECKPOINTS_INDEX_H_

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace nni_compression::cli {

inline constexpr char kIndexSuffix[] = ".index.json";

struct CheckpointIndex {
  std::map<std::string, std::string> weight_map;  // tensor -> name of a file in the same folder
  nlohmann::json metadata = nlohmann::json::object();

  std::vector<std::string> Files() const;  // each once, sorted
};

// INVALID_ARGUMENT names the entry for a file name that leads out of the folder, and for what is
// not an index.
absl::StatusOr<CheckpointIndex> ParseIndex(absl::string_view text);

// As Hugging Face writes it.
std::string SerializeIndex(const CheckpointIndex& index);

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_CHECKPOINTS_INDEX_H_
