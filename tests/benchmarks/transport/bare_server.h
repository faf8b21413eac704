// The least that could receive a tensor over gRPC.
#ifndef NNI_COMPRESSION_TESTS_BENCHMARKS_TRANSPORT_BARE_SERVER_H_
#define NNI_COMPRESSION_TESTS_BENCHMARKS_TRANSPORT_BARE_SERVER_H_

#include <memory>

namespace nni_compression::benchmarks {

// Serves any method: throws the request's messages away and, once the client half-closes, answers
// with the number of their bytes. Thread-safe.
class BareServer {
 public:
  BareServer();
  ~BareServer();

  // On loopback.
  int port() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nni_compression::benchmarks

#endif  // NNI_COMPRESSION_TESTS_BENCHMARKS_TRANSPORT_BARE_SERVER_H_
