// Completes an exported checkpoint with what did not travel.
#ifndef NNI_COMPRESSION_CLIENT_CLI_CHECKPOINT_SINK_H_
#define NNI_COMPRESSION_CLIENT_CLI_CHECKPOINT_SINK_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "client/cli/safetensors.h"
#include "nni_compression/files.h"

namespace nni_compression::cli {

// Passes files on to another sink. A .safetensors file of the server's gets a new header on the
// way: to its own tensors come those of the input that it lacks (biases, running statistics,
// whatever was not compressed, in any dtype and shape), copied from the input, and the input's
// metadata. So only what is compressed has to travel. Thread-compatible.
class CheckpointSink : public FileSink {
 public:
  // Both outlive the sink.
  CheckpointSink(const SafetensorsFile& input, FileSink& output) : input_(input), output_(output) {}

  absl::Status Begin(const std::string& name, int64_t byte_length) override;
  absl::Status Write(absl::Span<const uint8_t> bytes) override;
  absl::Status End() override;
  absl::Status Restart() override;

 private:
  // Writes the new header once all of the server's has arrived.
  absl::Status WriteHeader();

  const SafetensorsFile& input_;
  FileSink& output_;
  std::string name_;
  int64_t byte_length_ = 0;
  bool in_header_ = false;
  std::vector<uint8_t> head_;            // the file's beginning, until its header is complete
  std::vector<const FileTensor*> rest_;  // tensors of the input that come after the server's
};

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_CHECKPOINT_SINK_H_
