// Bytes in, tensors out: the receiving side of the streaming calls.
#ifndef NNI_COMPRESSION_SERVER_TENSOR_RECEIVER_H_
#define NNI_COMPRESSION_SERVER_TENSOR_RECEIVER_H_

#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compression/buffer.h"
#include "compression/weight.h"
#include "nni/compression/v1/compression.pb.h"
#include "proto/wire/frames.h"
#include "server/memory_budget.h"
#include "server/upload_meter.h"

namespace nni_compression::server {

// Of a call, each way.
constexpr uint32_t kMaxTensors = 1 << 20;

// A tensor that arrived completely. Its memory is admitted, result included.
struct ReceivedTensor {
  nni::compression::v1::TensorHeader header;
  compression::Buffer bytes;
  Reservation memory;
  std::optional<uint32_t> crc32;                              // of the commit
  bool came = false;                                          // in chunks
  std::shared_ptr<compression::WeightStatistics> statistics;  // may be null
};

// CRC-32 as zlib has it.
uint32_t Crc32(const compression::Buffer& bytes);

// DATA_LOSS when the bytes do not have the checksum that came with them. Reads all of them, so it
// belongs where computing does.
absl::Status VerifyChecksum(const ReceivedTensor& tensor);

// What a call does with what it receives. An error ends the call.
class TensorSink {
 public:
  struct Admission {
    bool accepted = false;    // false: the payload is checked and thrown away
    int64_t extra_bytes = 0;  // memory needed beside the payload, for the result
    // The payload, where it is here already: only the commit follows.
    std::optional<compression::Buffer> present = std::nullopt;
    std::shared_ptr<compression::WeightStatistics> statistics = nullptr;  // of `present`
  };

  virtual ~TensorSink() = default;

  // The message's first field has to be consumed by `reader.Parse`.
  virtual absl::Status OnOpen(wire::MessageReader& reader) = 0;

  // `header` has a fresh index and a name of legal length; everything else is unchecked.
  virtual absl::StatusOr<Admission> OnHeader(const nni::compression::v1::TensorHeader& header) = 0;

  virtual absl::Status OnTensor(ReceivedTensor tensor) = 0;

  // Whether the call keeps tensors until more have come. It may then not wait for memory, as two
  // such calls would wait for one another.
  virtual bool HoldsTensors() const { return false; }
};

// Checks the framing, admits each tensor against the budget at its first chunk, and copies payloads
// once, to where they belong. A header costs nothing but itself. INVALID_ARGUMENT for bad framing,
// RESOURCE_EXHAUSTED for what is not admitted. Thread-compatible.
class TensorReceiver {
 public:
  enum class Progress {
    kDone,         // the message was consumed
    kNeedsMemory,  // Resume once `bytes_needed` are reserved
  };

  // Both outlive the receiver. What it reserves is put on `share`, what comes is counted by
  // `uploads`.
  TensorReceiver(TensorSink* sink, MemoryBudget* budget, MemoryShare share = {},
                 UploadShare uploads = {});

  absl::StatusOr<Progress> Receive(const grpc::ByteBuffer& message);
  absl::StatusOr<Progress> Resume(Reservation memory);
  int64_t bytes_needed() const { return bytes_needed_; }

  // Whether there is memory reserved for bytes that are still to come.
  bool holds_memory() const { return incomplete_ > 0; }

  // The peer half-closed: INVALID_ARGUMENT when a tensor lacks its commit.
  absl::Status Finish() const;

  // Frees everything.
  void Reset();

 private:
  struct Incoming {
    nni::compression::v1::TensorHeader header;
    TensorSink::Admission admission;
    compression::Buffer bytes;
    Reservation memory;
    uint64_t received = 0;
    std::optional<nni::compression::v1::Commit> commit;
  };

  // Memory that the tensor takes, of what counts as the server's.
  static uint64_t BytesNeeded(const Incoming& tensor);
  // Whether its payload does not come over the network.
  static bool NeedsNoChunks(const Incoming& tensor);

  absl::Status ReadFrames(const grpc::ByteBuffer& message);
  absl::Status TakeHeader(nni::compression::v1::TensorHeader header);
  absl::Status TakeCommit(const nni::compression::v1::Commit& commit);
  absl::StatusOr<Progress> ReadChunks();
  absl::StatusOr<Progress> FinishCommits();
  absl::Status CountUpload();
  absl::StatusOr<Incoming*> CheckChunk(const wire::ChunkPrefix& chunk);
  absl::StatusOr<Progress> Admit(Incoming& tensor);
  absl::Status Allocate(Incoming& tensor, Reservation memory);
  absl::Status ReadChunk(Incoming& tensor);
  absl::Status Deliver(Incoming& tensor);

  TensorSink* const sink_;
  MemoryBudget* const budget_;
  const MemoryShare share_;
  const UploadShare uploads_;
  bool opened_ = false;
  std::vector<bool> used_;  // indices of this call
  absl::flat_hash_map<uint32_t, std::unique_ptr<Incoming>> tensors_;
  int64_t header_bytes_ = 0;  // of tensors_
  int incomplete_ = 0;        // tensors that hold memory
  bool uploading_ = false;    // a tensor was counted
  int64_t bytes_needed_ = 0;

  // The message that is being read, and the chunk in it that was begun.
  std::optional<wire::MessageReader> reader_;
  wire::ChunkPrefix chunk_;
  Incoming* chunk_tensor_ = nullptr;
  std::vector<uint32_t> commits_;  // of the message
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_TENSOR_RECEIVER_H_
