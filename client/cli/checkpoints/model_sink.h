// Writes an exported model into a folder: its weights as one file or as shards, and its config.
#ifndef NNI_COMPRESSION_CLIENT_CLI_CHECKPOINTS_MODEL_SINK_H_
#define NNI_COMPRESSION_CLIENT_CLI_CHECKPOINTS_MODEL_SINK_H_

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "client/cli/checkpoints/model_config.h"
#include "client/cli/checkpoints/output_folder.h"
#include "client/cli/checkpoints/safetensors.h"
#include "nni_compression/files.h"

namespace nni_compression::cli {

// A file of tensors: its header and where the data of each tensor goes.
struct Shard {
  std::string name;
  SafetensorsHeader header;
};

// Cuts a file of tensors into shards of at most `max_bytes` of data, which only a single tensor may
// exceed, in the order of the file. In a shard, large element types come first, so that each tensor
// is aligned to its elements. `base` is the name without suffix: "model".
std::vector<Shard> PlanShards(const SafetensorsHeader& file, const std::string& base,
                              int64_t max_bytes);

struct ModelSinkOptions {
  std::string stem = "model";                                // of the weights' names
  int64_t max_shard_bytes = 0;                               // 0: one file
  std::optional<ModelConfig> config;                         // that the exported one is added to
  std::string format;                                        // for kResultMetadata
  nlohmann::json index_metadata = nlohmann::json::object();  // kept in a new index
  std::map<std::string, std::string> tied;                   // name -> stored tensor, likewise
};

// Receives the files of an export. .safetensors files become shards with an index where they are
// larger than max_shard_bytes; an exported config.json is added to the model's own.
// Thread-compatible.
class ModelSink : public FileSink {
 public:
  // The folder outlives the sink.
  ModelSink(OutputFolder& folder, ModelSinkOptions options)
      : folder_(folder), options_(std::move(options)) {}

  absl::Status Begin(const std::string& name, int64_t byte_length) override;
  void Warn(const std::string& warning) override { warnings_.push_back(warning); }
  absl::Status Write(absl::Span<const uint8_t> bytes) override;
  absl::Status End() override;
  absl::Status Restart() override;

  const std::vector<std::string>& warnings() const { return warnings_; }
  // The names of what was written, in order.
  const std::vector<std::string>& files() const { return files_; }

 private:
  enum class Kind { kPlain, kConfig, kTensors };
  // The next bytes from the export that belong to one tensor.
  struct Piece {
    size_t shard = 0;
    int64_t offset = 0;  // in the shard's file
    int64_t bytes = 0;
  };

  // The name, without suffix, under which the received file is written.
  std::string Base() const;
  absl::Status Plan(int64_t data_begin);
  absl::Status WriteData(absl::Span<const uint8_t> bytes);
  absl::Status OpenShard(size_t shard);
  absl::Status WriteIndex();

  OutputFolder& folder_;
  const ModelSinkOptions options_;
  std::vector<std::string> warnings_;
  std::vector<std::string> files_;

  // Of the file that is received.
  Kind kind_ = Kind::kPlain;
  std::string name_;
  int64_t byte_length_ = 0;
  std::vector<uint8_t> head_;  // until the header is complete; of a config all
  OutputFile output_;          // the shard that is written
  int64_t offset_ = 0;         // in it, of a plain file
  std::vector<Shard> shards_;  // empty: not planned yet
  std::vector<Piece> pieces_;  // those that have bytes
  size_t next_ = 0;            // piece
  size_t opened_ = 0;          // shards
};

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_CHECKPOINTS_MODEL_SINK_H_
