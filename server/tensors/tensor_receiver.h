// The receiving side of the streaming calls.
#ifndef NNI_COMPRESSION_SERVER_TENSORS_TENSOR_RECEIVER_H_
#define NNI_COMPRESSION_SERVER_TENSORS_TENSOR_RECEIVER_H_

#include <grpcpp/support/byte_buffer.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compression/tensors/weight.h"
#include "compression/types/buffer.h"
#include "nni/compression/v1/compression.pb.h"
#include "proto/wire/frames.h"
#include "server/limits/memory_budget.h"
#include "server/limits/upload_meter.h"

namespace nni_compression::server {

// Per call and direction.
constexpr uint32_t kMaxTensors = 1 << 20;

// Memory of a tensor in addition to its payload and result, from its header until its answer is
// written: the header, table entries, the task, the fields of the answer. Measured. If the answer
// is sent before the tensor's last frame, half of it stays with the tensor.
int64_t BookkeepingBytes(const nni::compression::v1::TensorHeader& header);

// A complete tensor. Its memory is reserved, that of the result included.
struct ReceivedTensor {
  nni::compression::v1::TensorHeader header;
  int layer = -1;  // from its admission
  compression::Buffer bytes;
  Reservation memory;             // of payload and result
  Reservation bookkeeping;        // moves to the answer
  std::optional<uint32_t> crc32;  // from the commit
  bool uploaded = false;          // received in chunks, not cached or shared
  std::shared_ptr<compression::WeightStatistics> statistics;  // may be null
};

// CRC-32 as in zlib.
uint32_t Crc32(const compression::Buffer& bytes);

// DATA_LOSS when the bytes do not match the checksum of the commit. Reads all bytes, so it must be
// called on a compute thread.
absl::Status VerifyChecksum(const ReceivedTensor& tensor);

// Receives the tensors of a call. An error ends the call.
class TensorSink {
 public:
  struct Admission {
    bool accepted = false;    // false: the payload is checked and discarded
    int64_t extra_bytes = 0;  // memory for the result, in addition to the payload
    // The payload, if the server has it already: only the commit follows.
    std::optional<compression::Buffer> present = std::nullopt;
    std::shared_ptr<compression::WeightStatistics> statistics = nullptr;  // of `present`
    int layer = -1;  // the sink's index of the header's layer
  };

  virtual ~TensorSink() = default;

  // Must consume the message's first field with `reader.Parse`. Returns whether the rest of the
  // message can follow at once; otherwise it waits for OnReady.
  virtual absl::StatusOr<bool> OnOpen(wire::MessageReader& reader) = 0;

  // Called before the first header.
  virtual absl::Status OnReady() { return absl::OkStatus(); }

  // `header` has an unused index and a name of valid length; everything else is unchecked. An
  // answer that is sent at once takes its part of `bookkeeping`, at most half of it.
  virtual absl::StatusOr<Admission> OnHeader(const nni::compression::v1::TensorHeader& header,
                                             Reservation& bookkeeping) = 0;

  virtual absl::Status OnTensor(ReceivedTensor tensor) = 0;

  // A tensor with a digest was committed without a payload, and the server does not have it: it
  // will not be sent under this index. Returns an error if the call needs it.
  virtual absl::Status OnAbandoned(const nni::compression::v1::TensorHeader& header) {
    return absl::OkStatus();
  }

  // Whether the call holds tensors until more are received. Such a call never waits for memory,
  // since two of them could deadlock.
  virtual bool HoldsTensors() const { return false; }
};

// The indices that a call has used. Its memory depends on their number, not on the largest.
// Thread-compatible.
class IndexSet {
 public:
  // The memory that adding an index takes; 0 if its page exists.
  int64_t BytesFor(uint32_t index) const {
    return pages_.contains(index / kPageBits) ? 0 : kPageBytes;
  }
  bool contains(uint32_t index) const;

  // `memory` is the reservation of BytesFor(index).
  void Insert(uint32_t index, Reservation memory);

 private:
  static constexpr uint32_t kWordBits = 64;
  static constexpr uint32_t kPageBits = 512;
  static constexpr int64_t kPageBytes = 256;  // with its slot in the map

  struct Page {
    std::array<uint64_t, kPageBits / kWordBits> words = {};
    Reservation memory;
  };
  absl::flat_hash_map<uint32_t, Page> pages_;
};

// Checks the framing, reserves memory for each header and, at its first chunk, for each tensor from
// the budget and the tenant's quota, and copies payloads exactly once, into their buffers.
// INVALID_ARGUMENT for invalid framing, RESOURCE_EXHAUSTED without memory. Thread-compatible.
class TensorReceiver {
 public:
  enum class Progress {
    kDone,          // the message was consumed
    kNeedsMemory,   // Resume once `bytes_needed` are reserved
    kNeedsSession,  // Ready once the sink can continue
  };

  // `sink` and `budget` outlive the receiver. Reservations are charged to `memory_quota`, tensors
  // are counted against `upload_quota`.
  TensorReceiver(TensorSink* sink, MemoryBudget* budget, MemoryQuota memory_quota = {},
                 UploadQuota upload_quota = {});

  // Each continues until the message is consumed or it has to wait.
  absl::StatusOr<Progress> Receive(const grpc::ByteBuffer& message);
  absl::StatusOr<Progress> Resume(Reservation memory);
  absl::StatusOr<Progress> Ready();

  int64_t bytes_needed() const { return bytes_needed_; }

  // Whether memory is reserved for bytes that have not been received.
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
    Reservation bookkeeping;
    int64_t header_bytes = 0;
    uint64_t received = 0;
    std::optional<nni::compression::v1::Commit> commit;
  };

  // The stage of processing a message. Its fields take effect in the order open, headers, chunks,
  // commits, whatever their order on the wire.
  enum class Stage { kFrames, kChunks, kCommits };

  // The tensor's memory in the server: not shared memory or cached weights.
  static uint64_t BytesNeeded(const Incoming& tensor);
  // Whether its payload is not sent in chunks.
  static bool NeedsNoChunks(const Incoming& tensor);

  // Continues where it stopped. A step that had to wait is repeated.
  absl::StatusOr<Progress> Continue();
  absl::StatusOr<Progress> ReadOn();
  absl::StatusOr<Progress> ReadFrames();
  absl::StatusOr<Progress> ReadChunks();
  absl::StatusOr<Progress> FinishCommits();

  // Reserves memory for a header. A message may have thousands of them, so it reserves in growing
  // pieces.
  absl::StatusOr<Reservation> Bookkeep(int64_t bytes,
                                       const nni::compression::v1::TensorHeader& header);

  // Gives the tensor the memory of its payload and result; kNeedsMemory if it has to wait.
  absl::StatusOr<Progress> Admit(Incoming& tensor);

  absl::Status CheckHeader(const nni::compression::v1::TensorHeader& header) const;
  absl::Status HandleHeader(nni::compression::v1::TensorHeader header);
  absl::Status HandleCommit(const nni::compression::v1::Commit& commit);
  absl::Status CountUpload();
  absl::StatusOr<Incoming*> CheckChunk(const wire::ChunkPrefix& chunk);
  absl::Status Allocate(Incoming& tensor);
  absl::Status ReadChunk(Incoming& tensor);
  absl::Status Deliver(Incoming& tensor);

  TensorSink* const sink_;
  MemoryBudget* const budget_;
  const MemoryQuota memory_quota_;
  const UploadQuota upload_quota_;
  bool opened_ = false;
  IndexSet used_;
  absl::flat_hash_map<uint32_t, std::unique_ptr<Incoming>> tensors_;
  int64_t header_bytes_ = 0;  // of tensors_
  int incomplete_ = 0;        // tensors that hold memory
  bool uploading_ = false;    // the call's first tensor was counted
  int64_t bytes_needed_ = 0;
  Reservation spare_;       // unused bookkeeping, while a message is being read
  int64_t next_piece_ = 0;  // size of its next piece
  std::optional<Reservation> granted_;

  // The message that is being read, and its pending parts.
  grpc::ByteBuffer message_;
  std::optional<wire::MessageReader> reader_;
  Stage stage_ = Stage::kFrames;
  wire::ChunkPrefix chunk_;
  Incoming* chunk_tensor_ = nullptr;
  std::vector<nni::compression::v1::Commit> early_commits_;  // received before their headers
  std::vector<uint32_t> commits_;                            // of the message
  size_t finished_commits_ = 0;                              // of commits_
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_TENSORS_TENSOR_RECEIVER_H_
