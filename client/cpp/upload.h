// The sending half of a call with tensors.
#ifndef NNI_COMPRESSION_CLIENT_CPP_UPLOAD_H_
#define NNI_COMPRESSION_CLIENT_CPP_UPLOAD_H_

#include <google/protobuf/message_lite.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "client/cpp/shared_memory.h"
#include "nni_compression/types.h"
#include "proto/wire/frames.h"

namespace nni_compression::internal {

// Counts the slices that alias a caller's memory. It must outlive them. Thread-safe.
class Loans {
 public:
  grpc::Slice Lend(absl::Span<const uint8_t> bytes);
  bool all_returned() const { return count_.load(std::memory_order_acquire) == 0; }

 private:
  static void Return(void* loans);
  std::atomic<int64_t> count_{0};
};

// INVALID_ARGUMENT, naming the tensor, when its size disagrees with its shape.
absl::Status CheckTensor(const Tensor& tensor);

// Cuts tensors into messages of about wire::kChunkBytes. Small tensors share messages; a large one
// begins and ends its own, so that a call never has two incomplete tensors. The index of a tensor
// in the call is its index in `tensors`. Thread-compatible.
class Upload {
 public:
  struct Options {
    bool checksum = false;
    bool headers_first = false;                          // all headers go before the first payload
    std::function<void(int64_t sent_bytes)> on_message;  // optional; called after each message
    SharedCall* shared = nullptr;                        // optional; outlives the upload
  };

  // `open` is a message with the first field set. The tensors have been checked, and they and their
  // bytes outlive the upload's messages.
  Upload(const google::protobuf::MessageLite& open, std::vector<const Tensor*> tensors,
         Options options, Loans& loans);

  // There is always at least one message, the first.
  bool done() const { return !first_ && committed_ == tensors_.size(); }
  grpc::ByteBuffer NextMessage();

  // Payload in the messages so far.
  int64_t sent_bytes() const { return sent_bytes_; }

 private:
  void AppendHeader(size_t index);
  bool AppendHeaders();
  void AppendPayloads();

  const std::vector<const Tensor*> tensors_;
  const Options options_;
  std::vector<bool> shared_;  // by tensor: its bytes are in shared memory
  Loans& loans_;
  wire::MessageWriter writer_;
  bool first_ = true;
  size_t announced_ = 0;  // tensors whose headers are sent
  size_t committed_ = 0;  // tensors that are sent
  int64_t offset_ = 0;    // into the next tensor to be committed
  uint32_t crc32_ = 0;    // of that tensor's bytes so far
  int64_t sent_bytes_ = 0;
};

}  // namespace nni_compression::internal

#endif  // NNI_COMPRESSION_CLIENT_CPP_UPLOAD_H_
