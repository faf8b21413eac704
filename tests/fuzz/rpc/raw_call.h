// A call of any method, by bytes, one step at a time.
#ifndef NNI_COMPRESSION_TESTS_FUZZ_RPC_RAW_CALL_H_
#define NNI_COMPRESSION_TESTS_FUZZ_RPC_RAW_CALL_H_

#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>

#include <memory>
#include <string>
#include <vector>

namespace nni_compression::fuzz {

// Replies are read as they arrive. Every step waits for its completion; one that takes over a
// minute, and a call that does not end, fails the test. Thread-compatible.
class RawCall {
 public:
  RawCall(grpc::GenericStub& stub, const std::string& method, const std::string& tenant,
          std::chrono::microseconds timeout);
  ~RawCall();
  RawCall(const RawCall&) = delete;
  RawCall& operator=(const RawCall&) = delete;

  // False: the call is over.
  bool Write(const std::string& message);
  void HalfClose();
  void Cancel() { context_.TryCancel(); }

  // Reads what is left, and gives the status.
  const grpc::Status& Finish();

  const std::vector<grpc::ByteBuffer>& replies() const { return replies_; }

 private:
  enum Step : intptr_t { kStart = 1, kWrite, kRead, kHalfClose, kFinish };

  // Waits for the step; whether it was done.
  bool Wait(Step step);
  static void* Tag(Step step) { return reinterpret_cast<void*>(step); }

  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
  grpc::ByteBuffer reply_;
  std::vector<grpc::ByteBuffer> replies_;
  bool reading_ = false;
  bool half_closed_ = false;
  bool finished_ = false;
  grpc::Status status_;
};

}  // namespace nni_compression::fuzz

#endif  // NNI_COMPRESSION_TESTS_FUZZ_RPC_RAW_CALL_H_
