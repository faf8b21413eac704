// Reading .safetensors files: https://github.com/huggingface/safetensors#format
#ifndef NNI_COMPRESSION_CLIENT_CLI_CHECKPOINTS_SAFETENSORS_H_
#define NNI_COMPRESSION_CLIENT_CLI_CHECKPOINTS_SAFETENSORS_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "nni_compression/types.h"

namespace nni_compression::cli {

// A weight's name is its layer's with this suffix.
inline constexpr char kWeightSuffix[] = ".weight";
inline constexpr char kSafetensorsSuffix[] = ".safetensors";

// A tensor of a file, from its header.
struct FileTensor {
  std::string name;
  std::string dtype;  // the format's name: "F32", "I64"
  std::vector<int64_t> shape;
  int64_t begin = 0;  // offsets into the data, which follows the header
  int64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<FileTensor> tensors;  // by offset
  std::map<std::string, std::string> metadata;
  int64_t data_begin = 0;  // offset of the data in the file
};

// The service's type for a dtype of the format; nullopt when the service does not take it.
std::optional<DataType> ToDataType(absl::string_view dtype);

// Bits of an element; 0 for a dtype that the format does not have.
int ElementBits(absl::string_view dtype);

constexpr int64_t kLengthBytes = 8;  // of the header's length, with which a file begins

// Bytes that the header occupies with its length, from the file's first eight bytes.
// INVALID_ARGUMENT unless the header has 2 bytes to 100 MB and fits into `file_bytes`.
absl::StatusOr<int64_t> DataBegin(absl::Span<const uint8_t> first_bytes, int64_t file_bytes);

// Reads the header at the start of a file of `file_bytes`; `bytes` holds at least the header.
// INVALID_ARGUMENT names the tensor for a dtype that the format does not have, a duplicate name,
// and offsets that overlap, leave a gap, disagree with the shape or do not end with the file.
absl::StatusOr<SafetensorsHeader> ParseHeader(absl::Span<const uint8_t> bytes, int64_t file_bytes);

// The header as the first bytes of a file, padded so that the data is aligned to 8 bytes.
// `data_begin` is not used.
std::string SerializeHeader(const SafetensorsHeader& header);

// A file mapped into memory. The bytes of its tensors are valid as long as it exists, provided that
// the file is not truncated. Immutable; thread-safe.
class SafetensorsFile {
 public:
  static absl::StatusOr<SafetensorsFile> Open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&& other) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) = delete;

  const SafetensorsHeader& header() const { return header_; }
  absl::Span<const uint8_t> bytes(const FileTensor& tensor) const;

  // Removes the file from the memory of this process; what is needed again is read again.
  void Release() const;

 private:
  SafetensorsFile() = default;

  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
  SafetensorsHeader header_;
};

// From now on, when a mapped file is truncated while it is read, which the kernel reports by
// SIGBUS, the program prints `message` as a line and exits with `exit_status`. Incomplete files of
// the result are left under their temporary names, as after a SIGKILL. Called once.
void ExitOnTruncatedInput(const std::string& message, int exit_status);

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_CHECKPOINTS_SAFETENSORS_H_
