// Completes an exported checkpoint with the tensors that were not sent.
#ifndef NNI_COMPRESSION_CLIENT_CLI_CHECKPOINTS_CHECKPOINT_SINK_H_
#define NNI_COMPRESSION_CLIENT_CLI_CHECKPOINTS_CHECKPOINT_SINK_H_

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "client/cli/checkpoints/checkpoint.h"
#include "client/cli/checkpoints/safetensors.h"
#include "nni_compression/files.h"

namespace nni_compression::cli {

// The order of tensors in a checkpoint: large element types first, so that each tensor is aligned
// to its elements, which some readers need; else as in the input, and new tensors last.
class CheckpointOrder {
 public:
  explicit CheckpointOrder(const SafetensorsHeader& input);
  bool Before(const FileTensor& a, const FileTensor& b) const;

 private:
  std::map<std::string, size_t> positions_;
};

// Forwards files to another sink. A .safetensors file from the server gets a new header: the
// tensors of the input that were not sent (biases, running statistics and all else that was not
// compressed, in any dtype and shape) are added from the input, and so is its metadata. So only
// compressed weights are sent. Thread-compatible.
class CheckpointSink : public FileSink {
 public:
  // `sent`: tensors of the input that the server's file replaces. Input and output outlive the
  // sink.
  CheckpointSink(const Checkpoint& input, std::set<std::string> sent, FileSink& output)
      : input_(input), sent_(std::move(sent)), output_(output), order_(input.header()) {}

  absl::Status Begin(const std::string& name, int64_t byte_length) override;
  void Warn(const std::string& warning) override { output_.Warn(warning); }
  absl::Status Write(absl::Span<const uint8_t> bytes) override;
  absl::Status End() override;
  absl::Status Restart() override;

 private:
  // A part of the new file's data: a tensor of the input, or bytes from the server.
  struct Piece {
    const FileTensor* local = nullptr;
    int64_t server_bytes = 0;  // not received yet
  };

  // Writes the new header once the server's is complete, and plans the data.
  absl::Status WriteHeader();
  absl::StatusOr<SafetensorsHeader> Merge();
  absl::Status WriteData(absl::Span<const uint8_t> bytes);
  // Writes the next tensors, as long as they are from the input.
  absl::Status WriteLocal();

  const Checkpoint& input_;
  const std::set<std::string> sent_;
  FileSink& output_;
  const CheckpointOrder order_;
  std::string name_;
  int64_t byte_length_ = 0;
  bool plain_ = false;  // not a .safetensors file
  bool in_header_ = false;
  std::vector<uint8_t> head_;  // the file's beginning, until its header is complete
  std::vector<Piece> pieces_;
  size_t next_ = 0;  // piece
};

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_CHECKPOINTS_CHECKPOINT_SINK_H_
