// Reading and writing the messages of the streaming calls without copying their payloads. The
// layout is in compression.proto ("Tensors on the wire"); server and client share this file.
#ifndef NNI_COMPRESSION_PROTO_WIRE_FRAMES_H_
#define NNI_COMPRESSION_PROTO_WIRE_FRAMES_H_

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/message_lite.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/proto_buffer_reader.h>
#include <grpcpp/support/slice.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace nni_compression::wire {

// The largest message of either direction, and the payload that one chunk carries by default.
constexpr int64_t kMaxMessageBytes = 4 << 20;
constexpr int64_t kChunkBytes = 1 << 20;

// The largest field that MessageReader::Parse accepts.
constexpr int64_t kMaxFieldBytes = 1 << 20;

// The length of the id of a region of shared memory.
constexpr size_t kRegionIdBytes = 16;

// Payloads up to this size are copied into the message: a slice of their own would cost more.
constexpr size_t kInlineBytes = 1024;

// Field numbers that all streaming messages share.
enum Field : int { kOpenOrResult = 1, kHeader = 2, kChunk = 3, kCommit = 4 };

// Builds one message. Thread-compatible.
class MessageWriter {
 public:
  // Appends the fields of a (partial) message of the stream's type: protobuf reads a concatenation
  // as one message.
  void Append(const google::protobuf::MessageLite& fields);

  // Appends a chunk whose payload aliases `payload`; one of up to kInlineBytes is copied, and the
  // slice is released at once.
  void AppendChunk(uint32_t index, uint64_t offset, grpc::Slice payload);

  int64_t byte_size() const { return byte_size_; }
  bool empty() const { return byte_size_ == 0; }

  // The message; the writer is empty afterwards.
  grpc::ByteBuffer Finish();

 private:
  void FlushSmall();

  std::string small_;  // bytes that are not yet a slice
  std::vector<grpc::Slice> slices_;
  int64_t byte_size_ = 0;
};

// The fields of a chunk without its payload.
struct ChunkPrefix {
  uint32_t index = 0;
  uint64_t offset = 0;
  int64_t payload_bytes = 0;
};

// Reads the fields of one message in wire order, so that a payload is copied exactly once, from the
// transport's memory to its destination. Every error is INVALID_ARGUMENT: the message is malformed
// or larger than kMaxMessageBytes; the reader must not be used afterwards. Lengths are checked
// against the message before they are used. Thread-compatible.
//
//   while (true) {
//     auto field = reader.Next();            // error, or 0 at the end
//     if (*field == kChunk) { auto chunk = reader.BeginChunk(); ... reader.ReadPayload(...); }
//     else reader.Parse(&message);           // or reader.Skip()
//   }
class MessageReader {
 public:
  explicit MessageReader(const grpc::ByteBuffer& message);

  // The number of the next field, 0 at the end. The field has to be consumed by Parse, by
  // BeginChunk and ReadPayload, or by Skip before the next call.
  absl::StatusOr<int> Next();

  // Parses the field, a message of at most kMaxFieldBytes and 32 levels, into `message`, whose old
  // content is lost.
  absl::Status Parse(google::protobuf::MessageLite* message);

  // The same once `admit` has seen the field's bytes. Its error is returned, with nothing parsed.
  absl::Status Parse(google::protobuf::MessageLite* message,
                     absl::FunctionRef<absl::Status(absl::string_view bytes)> admit);

  // Reads a chunk up to its payload, which must be its last field. A chunk without a payload has
  // payload_bytes 0.
  absl::StatusOr<ChunkPrefix> BeginChunk();

  // Copies the chunk's payload to `out`, whose size must be payload_bytes (INTERNAL otherwise).
  absl::Status ReadPayload(absl::Span<uint8_t> out);
  absl::Status SkipPayload();

  // Skips the field.
  absl::Status Skip();

 private:
  // Reads the length of the current field; checked to lie within the message.
  absl::StatusOr<int> ReadLength();
  // The same, limited to kMaxFieldBytes.
  absl::StatusOr<int> ReadFieldLength();
  int64_t Remaining() const;

  grpc::ByteBuffer message_;
  int64_t size_;
  grpc::ProtoBufferReader bytes_;
  google::protobuf::io::CodedInputStream input_;
  uint32_t tag_ = 0;
  int64_t payload_bytes_ = 0;
};

}  // namespace nni_compression::wire

#endif  // NNI_COMPRESSION_PROTO_WIRE_FRAMES_H_
