// The Export call: tensors out, files in.
#ifndef NNI_COMPRESSION_CLIENT_CPP_EXPORT_H_
#define NNI_COMPRESSION_CLIENT_CPP_EXPORT_H_

#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "client/cpp/connection.h"
#include "client/cpp/replies.h"
#include "nni_compression/files.h"
#include "nni_compression/session.h"

namespace nni_compression::internal {

// OK for a plain file name: no directory, no "..", no control characters, at most 255 bytes.
absl::Status CheckFileName(const std::string& name);

// Hands files to a sink as they arrive, one after the other. Thread-compatible.
class FileReader {
 public:
  explicit FileReader(FileSink& sink) : sink_(sink) {}

  // Reads one message. INTERNAL when it is malformed, else the error of the sink.
  absl::Status Read(const grpc::ByteBuffer& message);
  // INTERNAL when a file that began did not end.
  absl::Status Finish() const;
  int64_t files() const { return complete_; }

 private:
  struct File {
    std::string name;
    int64_t byte_length;
    std::vector<std::string> warnings;
    Arrival arrival;
  };

  absl::Status OnFile(const v1::FileHeader& header);
  absl::Status OnChunk(wire::MessageReader& reader);
  absl::Status OnCommit(const v1::Commit& commit);
  // The file with this index; begins it unless another one is incomplete.
  absl::StatusOr<File*> Begun(uint32_t index);

  FileSink& sink_;
  absl::flat_hash_map<uint32_t, File> files_;  // announced, not complete
  absl::flat_hash_set<std::string> names_;
  std::optional<uint32_t> open_;
  int64_t complete_ = 0;
  std::vector<uint8_t> scratch_;
};

absl::Status RunExport(const Connection& connection, const Route& route,
                       const v1::ExportRequest& open, absl::Span<const Tensor> tensors,
                       FileSink& sink, const CallOptions& options);

}  // namespace nni_compression::internal

#endif  // NNI_COMPRESSION_CLIENT_CPP_EXPORT_H_
