// Bytes in, tensors out: the receiving side of the streaming calls.
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

// Of a call, each way.
constexpr uint32_t kMaxTensors = 1 << 20;

// What a tensor takes beside its payload and its result, from its header until its answer has been
// written: the header, its place in tables, the task, the fields of the answer. Measured; half of
// it stays with the tensor where the answer goes out before its frames have come to an end.
int64_t BookkeepingBytes(const nni::compression::v1::TensorHeader& header);

// A tensor that arrived completely. Its memory is admitted, result included.
struct ReceivedTensor {
  nni::compression::v1::TensorHeader header;
  int layer = -1;  // as its admission has it
  compression::Buffer bytes;
  Reservation memory;                                         // of payload and result
  Reservation bookkeeping;                                    // for the answer to take over
  std::optional<uint32_t> crc32;                              // of the commit
  bool uploaded = false;                                      // in chunks
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
    int layer = -1;  // what the header's layer is to the sink
  };

  virtual ~TensorSink() = default;

  // The message's first field has to be consumed by `reader.Parse`. Says whether the rest of the
  // message can follow; it has to wait for OnReady otherwise.
  virtual absl::StatusOr<bool> OnOpen(wire::MessageReader& reader) = 0;

  // Before the first header.
  virtual absl::Status OnReady() { return absl::OkStatus(); }

  // `header` has a fresh index and a name of legal length; everything else is unchecked. An answer
  // that goes out at once takes its part of `bookkeeping`, at most half of it.
  virtual absl::StatusOr<Admission> OnHeader(const nni::compression::v1::TensorHeader& header,
                                             Reservation& bookkeeping) = 0;

  virtual absl::Status OnTensor(ReceivedTensor tensor) = 0;

  // A tensor with a digest was committed before anything of it came, and is not there: it will not
  // come under this index. An error where the call needs it.
  virtual absl::Status OnAbandoned(const nni::compression::v1::TensorHeader& header) {
    return absl::OkStatus();
  }

  // Whether the call keeps tensors until more have come. It may then not wait for memory, as two
  // such calls would wait for one another.
  virtual bool HoldsTensors() const { return false; }
};

// Which indices a call has used. Takes memory for what was used, not for what is below it.
// Thread-compatible.
class IndexSet {
 public:
  // What the place of an index takes; 0 where it is there already.
  int64_t BytesFor(uint32_t index) const {
    return pages_.contains(index / kPageBits) ? 0 : kPageBytes;
  }
  bool contains(uint32_t index) const;

  // `memory` has the bytes for it.
  void Insert(uint32_t index, Reservation memory);

 private:
  static constexpr uint32_t kWordBits = 64;
  static constexpr uint32_t kPageBits = 512;
  static constexpr int64_t kPageBytes = 256;  // with its place in the map

  struct Page {
    std::array<uint64_t, kPageBits / kWordBits> words = {};
    Reservation memory;
  };
  absl::flat_hash_map<uint32_t, Page> pages_;
};

// Checks the framing, admits each header and, at its first chunk, each tensor against the budget
// and the tenant's quota, and copies payloads once, to where they belong. INVALID_ARGUMENT for bad
// framing, RESOURCE_EXHAUSTED for what is not admitted. Thread-compatible.
class TensorReceiver {
 public:
  enum class Progress {
    kDone,          // the message was consumed
    kNeedsMemory,   // Resume once `bytes_needed` are reserved
    kNeedsSession,  // Ready once the sink can continue
  };

  // Both outlive the receiver. What it reserves is put on `share`, what comes is counted by
  // `uploads`.
  TensorReceiver(TensorSink* sink, MemoryBudget* budget, MemoryShare share = {},
                 UploadShare uploads = {});

  // Each continues until the message is consumed or something has to be waited for.
  absl::StatusOr<Progress> Receive(const grpc::ByteBuffer& message);
  absl::StatusOr<Progress> Resume(Reservation memory);
  absl::StatusOr<Progress> Ready();

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
    Reservation bookkeeping;
    int64_t header_bytes = 0;
    uint64_t received = 0;
    std::optional<nni::compression::v1::Commit> commit;
  };

  // How far the message was read. Its fields mean the same in whatever order they come: open,
  // headers, chunks, commits.
  enum class Stage { kFrames, kChunks, kCommits };

  // Memory that the tensor takes, of what counts as the server's.
  static uint64_t BytesNeeded(const Incoming& tensor);
  // Whether its payload does not come over the network.
  static bool NeedsNoChunks(const Incoming& tensor);

  // Continues where it stopped. A step that has to wait is repeated when it is resumed.
  absl::StatusOr<Progress> Continue();
  absl::StatusOr<Progress> ReadOn();
  absl::StatusOr<Progress> ReadFrames();
  absl::StatusOr<Progress> ReadChunks();
  absl::StatusOr<Progress> FinishCommits();

  // Memory for a header, of which a message may hold thousands: taken in ever larger pieces.
  absl::StatusOr<Reservation> Bookkeep(int64_t bytes,
                                       const nni::compression::v1::TensorHeader& header);

  // Gives the tensor the memory of its payload and result; kNeedsMemory: it has to be waited for.
  absl::StatusOr<Progress> Admit(Incoming& tensor);

  absl::Status CheckHeader(const nni::compression::v1::TensorHeader& header) const;
  absl::Status TakeHeader(nni::compression::v1::TensorHeader header);
  absl::Status TakeCommit(const nni::compression::v1::Commit& commit);
  absl::Status CountUpload();
  absl::StatusOr<Incoming*> CheckChunk(const wire::ChunkPrefix& chunk);
  absl::Status Allocate(Incoming& tensor);
  absl::Status ReadChunk(Incoming& tensor);
  absl::Status Deliver(Incoming& tensor);

  TensorSink* const sink_;
  MemoryBudget* const budget_;
  const MemoryShare share_;
  const UploadShare uploads_;
  bool opened_ = false;
  IndexSet used_;
  absl::flat_hash_map<uint32_t, std::unique_ptr<Incoming>> tensors_;
  int64_t header_bytes_ = 0;  // of tensors_
  int incomplete_ = 0;        // tensors that hold memory
  bool uploading_ = false;    // a tensor was counted
  int64_t bytes_needed_ = 0;
  Reservation spare_;       // bookkeeping, while a message is being read
  int64_t next_piece_ = 0;  // of it
  std::optional<Reservation> granted_;

  // The message that is being read, and what in it waits.
  grpc::ByteBuffer message_;
  std::optional<wire::MessageReader> reader_;
  Stage stage_ = Stage::kFrames;
  wire::ChunkPrefix chunk_;
  Incoming* chunk_tensor_ = nullptr;
  std::vector<nni::compression::v1::Commit> early_commits_;  // that came before their headers
  std::vector<uint32_t> commits_;                            // of the message
  size_t finished_commits_ = 0;                              // of commits_
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_TENSORS_TENSOR_RECEIVER_H_
