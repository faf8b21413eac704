// A client that stops in the middle of a call and then waits to be killed:
//   peer ADDRESS METHOD SESSION LAYER ELEMENTS BYTES DEADLINE_MS
// METHOD is CalcMask or QuantizeWeight. Sends the first BYTES of a float32 tensor, and commits it
// when these are all of it; writes "s" to its standard output, reads one message and writes "r", or
// "e" if the call has ended instead. SIGTERM makes it cancel the call. 0 is no deadline.
#include <grpcpp/create_channel.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>

#include "nni/compression/v1/compression.grpc.pb.h"
#include "tests/testing/wire_messages.h"

namespace nni_compression::testing {
namespace {

constexpr uint64_t kChunk = 1 << 20;

struct Tensor {
  std::string session, layer;
  int64_t elements = 0;
  uint64_t sent = 0;
};

void Say(char what) {
  if (write(STDOUT_FILENO, &what, 1) != 1) _exit(1);
}

template <typename Request, typename Response>
void Call(grpc::ClientReaderWriter<Request, Response>& stream, Message<Request> open,
          const Tensor& tensor) {
  const v1::TensorHeader header = Header(0, tensor.layer, {tensor.elements});
  stream.Write(open.Open(tensor.session).Add(header).proto());
  for (uint64_t at = 0; at < tensor.sent; at += kChunk) {
    const std::string payload(std::min(kChunk, tensor.sent - at), '\0');
    stream.Write(Message<Request>().Chunk(0, at, payload).proto());
  }
  if (tensor.sent == header.byte_length()) {
    stream.Write(Message<Request>().Commit(0, tensor.sent).proto());
  }
  Say('s');
  Response response;
  Say(stream.Read(&response) ? 'r' : 'e');
}

}  // namespace
}  // namespace nni_compression::testing

int main(int argc, char** argv) {
  using namespace nni_compression::testing;  // NOLINT(google-build-using-namespace)
  if (argc != 8) return 2;
  sigset_t term;
  sigemptyset(&term);
  sigaddset(&term, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &term, nullptr);

  const auto stub = v1::CompressionService::NewStub(
      grpc::CreateChannel(argv[1], grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  if (const int deadline = std::atoi(argv[7]); deadline > 0) {
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(deadline));
  }
  std::thread([&] {
    int signal = 0;
    sigwait(&term, &signal);
    context.TryCancel();
  }).detach();

  const Tensor tensor{argv[3], argv[4], std::atoll(argv[5]), std::strtoull(argv[6], nullptr, 10)};
  if (std::string(argv[2]) == "CalcMask") {
    const auto stream = stub->CalcMask(&context);
    Call(*stream, MaskMessage(), tensor);
    while (true) pause();
  }
  const auto stream = stub->QuantizeWeight(&context);
  QuantizeMessage open;
  open.proto().mutable_open()->set_reply(v1::QuantizeWeightRequest::REPLY_VALUES);
  Call(*stream, open, tensor);
  while (true) pause();
}
