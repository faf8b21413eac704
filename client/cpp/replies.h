// The receiving half of calls with tensors: payloads are copied once, from the transport's memory
// to their destination, and everything from the server is checked before it is used.
#ifndef NNI_COMPRESSION_CLIENT_CPP_REPLIES_H_
#define NNI_COMPRESSION_CLIENT_CPP_REPLIES_H_

#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "client/cpp/shared_memory.h"
#include "nni/compression/v1/compression.pb.h"
#include "nni_compression/types.h"
#include "proto/wire/frames.h"

namespace nni_compression::internal {

namespace v1 = ::nni::compression::v1;

// The error for a malformed reply.
absl::Status BadReply(absl::string_view why);
absl::Status StatusOf(const v1::LayerError& error);

// How much of a tensor or file has arrived.
class Arrival {
 public:
  explicit Arrival(int64_t byte_length) : byte_length_(byte_length) {}

  // INTERNAL unless the chunk follows the last one and fits.
  absl::Status CheckChunk(const wire::ChunkPrefix& chunk) const;
  void Advance(absl::Span<const uint8_t> payload);

  // All bytes have arrived; they are read again when a commit has a CRC-32.
  void Complete(absl::Span<const uint8_t> bytes);

  // INTERNAL unless all has arrived; DATA_LOSS when a CRC-32 was given and differs.
  absl::Status CheckCommit(const v1::Commit& commit) const;

  int64_t received() const { return received_; }

 private:
  int64_t byte_length_;
  int64_t received_ = 0;
  uint32_t crc32_ = 0;
  absl::Span<const uint8_t> whole_;  // given to Complete
};

// One tensor of a reply.
struct ReceivedTensor {
  TensorRole role = TensorRole::kWeight;
  DataType dtype = DataType::kBit;
  std::vector<int64_t> shape;
  Bytes bytes;
};

// Assembles the answers to the tensors that were sent. Result is MaskResult or
// QuantizeResult. Thread-compatible.
template <typename Result>
class ReplyReader {
 public:
  struct Answer {
    Result result;
    std::vector<ReceivedTensor> tensors;
    int64_t expected_tensors = 0;  // 0 when the result is an error
  };

  explicit ReplyReader(absl::Span<const Tensor* const> sent) : sent_(sent) {}

  // Where results in shared memory are; outlives the reader. By default there are none.
  void ReadFrom(const SharedCall* shared) { shared_ = shared; }
  virtual ~ReplyReader() = default;

  // Reads one message. INTERNAL when it is malformed.
  absl::Status Read(const grpc::ByteBuffer& message);

  // Tensors whose answers are complete.
  int64_t answered() const { return answered_count_; }

 protected:
  const Tensor& sent_tensor(size_t index) const { return *sent_[index]; }

  // How many tensors follow a result that is not an error.
  virtual absl::StatusOr<int64_t> ExpectedTensors(const Tensor& sent, const Result& result) = 0;
  // INTERNAL unless the tensor can be a part of the answer; called before memory is allocated for
  // it.
  virtual absl::Status CheckHeader(const Tensor& sent, const Result& result,
                                   const ReceivedTensor& tensor) = 0;
  // Called once for each tensor sent, when all of its answer has arrived.
  virtual absl::Status OnAnswer(size_t index, Answer answer) = 0;

 private:
  struct Incoming {
    uint32_t answers;
    size_t slot;  // in the answer's tensors
    Arrival arrival;
  };

  absl::Status OnResult(Result result);
  absl::Status OnHeader(const v1::TensorHeader& header);
  absl::Status CopyShared(const v1::TensorHeader& header, Bytes& bytes, Arrival& arrival);
  absl::Status OnChunk(wire::MessageReader& reader);
  absl::Status OnCommit(const v1::Commit& commit);
  absl::Status FinishIfComplete(uint32_t index);

  const absl::Span<const Tensor* const> sent_;
  const SharedCall* shared_ = nullptr;
  absl::flat_hash_map<uint32_t, Answer> pending_;     // by index of the tensor sent
  absl::flat_hash_map<uint32_t, Incoming> incoming_;  // by index of the tensor received
  absl::flat_hash_map<uint32_t, int64_t> commits_;    // tensors complete, by index sent
  std::vector<bool> answered_ = std::vector<bool>(sent_.size());
  int64_t answered_count_ = 0;
};

extern template class ReplyReader<v1::MaskResult>;
extern template class ReplyReader<v1::QuantizeResult>;

// Answers of CalcMask. `results` has an element for every tensor sent; those answered are filled.
class MaskReader : public ReplyReader<v1::MaskResult> {
 public:
  MaskReader(absl::Span<const Tensor* const> sent,
             std::vector<std::optional<absl::StatusOr<Mask>>>& results)
      : ReplyReader(sent), results_(results) {}

 private:
  absl::StatusOr<int64_t> ExpectedTensors(const Tensor&, const v1::MaskResult&) override;
  absl::Status CheckHeader(const Tensor&, const v1::MaskResult&, const ReceivedTensor&) override;
  absl::Status OnAnswer(size_t index, Answer answer) override;

  std::vector<std::optional<absl::StatusOr<Mask>>>& results_;
};

// The shape of each layer's weight, by name.
using Shapes = std::map<std::string, std::vector<int64_t>>;

// Answers of CalcMask to counts of layers that have these shapes, likewise.
class ThresholdReader : public ReplyReader<v1::MaskResult> {
 public:
  using Result = std::variant<v1::MaskResult, Mask>;  // with a threshold, or with a mask

  ThresholdReader(absl::Span<const Tensor* const> sent, const Shapes& shapes,
                  std::vector<std::optional<absl::StatusOr<Result>>>& results)
      : ReplyReader(sent), shapes_(shapes), results_(results) {}

 private:
  absl::StatusOr<int64_t> ExpectedTensors(const Tensor&, const v1::MaskResult&) override;
  absl::Status CheckHeader(const Tensor&, const v1::MaskResult&, const ReceivedTensor&) override;
  absl::Status OnAnswer(size_t index, Answer answer) override;

  const Shapes& shapes_;
  std::vector<std::optional<absl::StatusOr<Result>>>& results_;
};

// Answers of QuantizeWeight, likewise.
class QuantizeReader : public ReplyReader<v1::QuantizeResult> {
 public:
  QuantizeReader(absl::Span<const Tensor* const> sent, QuantizeReply reply,
                 std::vector<std::optional<absl::StatusOr<QuantizedTensor>>>& results)
      : ReplyReader(sent), reply_(reply), results_(results) {}

 private:
  absl::StatusOr<int64_t> ExpectedTensors(const Tensor&, const v1::QuantizeResult&) override;
  absl::Status CheckHeader(const Tensor&, const v1::QuantizeResult&,
                           const ReceivedTensor&) override;
  absl::Status OnAnswer(size_t index, Answer answer) override;

  const QuantizeReply reply_;
  std::vector<std::optional<absl::StatusOr<QuantizedTensor>>>& results_;
};

// INTERNAL for parameters that Dequantize could not use with this shape.
absl::StatusOr<QuantizationParameters> ParametersOf(const v1::QuantizationParameters& parameters);
Memory MemoryOf(const google::protobuf::RepeatedPtrField<v1::Memory>& in);

}  // namespace nni_compression::internal

#endif  // NNI_COMPRESSION_CLIENT_CPP_REPLIES_H_
