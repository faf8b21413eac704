// A checkpoint in one or several .safetensors files, as one.
#ifndef NNI_COMPRESSION_CLIENT_CLI_CHECKPOINTS_CHECKPOINT_H_
#define NNI_COMPRESSION_CLIENT_CLI_CHECKPOINTS_CHECKPOINT_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "client/cli/checkpoints/model_files.h"
#include "client/cli/checkpoints/safetensors.h"

namespace nni_compression::cli {

// All files are mapped into memory, of which the kernel loads what is read. Thread-compatible; the
// bytes may be read by any thread at any time.
class Checkpoint {
 public:
  explicit Checkpoint(SafetensorsFile file);

  // INVALID_ARGUMENT names the tensor and its file when a tensor is in two files, or when the index
  // and the files disagree.
  static absl::StatusOr<Checkpoint> Open(const ModelFiles& model);

  // Of all files: the tensors file by file, with offsets as if the data were in one.
  const SafetensorsHeader& header() const { return header_; }
  absl::Span<const uint8_t> bytes(const FileTensor& tensor) const;

  // Data bytes of the largest file.
  int64_t largest_file() const { return largest_file_; }

  // Tied names that the index has, but no file -> the tensor that is stored.
  const std::map<std::string, std::string>& tied() const { return tied_; }

  // Tells that so many bytes of tensors were read and may not be needed soon. Every few MiB, the
  // memory of this process is released of all files.
  void AfterReading(int64_t bytes) const;

 private:
  Checkpoint() = default;
  absl::Status CheckIndex(const ModelFiles& model);
  void Add(SafetensorsFile file);

  std::vector<SafetensorsFile> files_;
  std::vector<int64_t> begins_;  // of the files' data in the offsets of header_
  int64_t end_ = 0;
  int64_t largest_file_ = 0;
  SafetensorsHeader header_;
  std::map<std::string, std::string> tied_;
  mutable int64_t read_ = 0;  // bytes since memory was released
};

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_CHECKPOINTS_CHECKPOINT_H_
