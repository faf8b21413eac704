// The least that could send a tensor over gRPC.
#ifndef NNI_COMPRESSION_TESTS_BENCHMARKS_TRANSPORT_BARE_CLIENT_H_
#define NNI_COMPRESSION_TESTS_BENCHMARKS_TRANSPORT_BARE_CLIENT_H_

#include <grpcpp/channel.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/types/span.h"

namespace nni_compression::benchmarks {

// Talks to a BareServer; dies when a call fails. Used by one thread.
class BareClient {
 public:
  explicit BareClient(const std::string& address);

  // Sends the bytes in one stream of messages that alias them, and waits for the answer.
  void Upload(absl::Span<const uint8_t> bytes);

  // A unary call with a request of `bytes` bytes.
  void Unary(int64_t bytes);

 private:
  const std::shared_ptr<grpc::Channel> channel_;
};

}  // namespace nni_compression::benchmarks

#endif  // NNI_COMPRESSION_TESTS_BENCHMARKS_TRANSPORT_BARE_CLIENT_H_
