// The sending side of the streaming calls.
#ifndef NNI_COMPRESSION_SERVER_TENSORS_REPLY_QUEUE_H_
#define NNI_COMPRESSION_SERVER_TENSORS_REPLY_QUEUE_H_

#include <google/protobuf/message_lite.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "compression/types/buffer.h"
#include "proto/wire/frames.h"
#include "server/limits/memory_budget.h"

namespace nni_compression::server {

// Bytes of a tensor or a file: sent as chunks, with the commit when `total` is reached.
struct Payload {
  uint32_t index = 0;
  compression::Buffer bytes;
  uint64_t offset = 0;            // of `bytes` in the tensor or file
  uint64_t total = 0;             // its byte length
  std::optional<uint32_t> crc32;  // for the commit
};

// The answer to one tensor. The memory is released when the last byte is sent.
struct Reply {
  std::unique_ptr<google::protobuf::MessageLite> fields;  // results and headers; may be null
  std::vector<Payload> payloads;
  std::shared_ptr<const Reservation> memory;  // of the payloads
  Reservation bookkeeping;                    // of the rest
  bool last = false;                          // no reply follows

  // Whether there is nothing to send.
  bool empty() const { return fields == nullptr && payloads.empty(); }
};

// Packs replies, in order, into messages: small ones share a message, large ones span several.
// Payloads are not copied; the messages keep them alive. Thread-compatible.
class ReplyQueue {
 public:
  void Push(Reply reply);
  bool empty() const { return replies_.empty(); }
  int64_t size() const { return static_cast<int64_t>(replies_.size()); }
  int64_t payload_bytes() const { return payload_bytes_; }  // unsent
  int64_t bytes() const { return payload_bytes_ + bookkeeping_bytes_; }
  void Clear();

  // The next message, at most wire::kMaxMessageBytes; the queue must not be empty.
  grpc::ByteBuffer NextMessage();

 private:
  // Appends what fits of the first reply; returns whether all of it did.
  bool AppendFirst(wire::MessageWriter& writer);
  bool AppendPayload(const Payload& payload, const std::shared_ptr<const Reservation>& memory,
                     wire::MessageWriter& writer);

  std::deque<Reply> replies_;
  size_t payload_ = 0;  // of the first reply
  int64_t sent_ = 0;    // bytes of that payload
  int64_t payload_bytes_ = 0;
  int64_t bookkeeping_bytes_ = 0;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_TENSORS_REPLY_QUEUE_H_
