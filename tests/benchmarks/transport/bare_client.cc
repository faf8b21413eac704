#include "tests/benchmarks/transport/bare_client.h"

#include <grpcpp/completion_queue.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstdio>
#include <cstdlib>

namespace nni_compression::benchmarks {
namespace {

constexpr size_t kMessageBytes = size_t{1} << 20;
constexpr char kMethod[] = "/bare.Discard/Upload";

void* TagOf(intptr_t number) { return reinterpret_cast<void*>(number); }
constexpr intptr_t kWritten = 1;
constexpr intptr_t kRead = 2;
constexpr intptr_t kFinished = 3;

void Check(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "the bare call failed: %s\n", what);
  std::exit(1);
}

// The next event but one on `tag` is unexpected.
bool Await(grpc::CompletionQueue& queue, intptr_t wanted) {
  void* tag = nullptr;
  bool ok = false;
  Check(queue.Next(&tag, &ok) && tag == TagOf(wanted), "an event out of turn");
  return ok;
}

std::shared_ptr<grpc::Channel> Connect(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_HTTP2_WRITE_BUFFER_SIZE, static_cast<int>(kMessageBytes));
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

}  // namespace

BareClient::BareClient(const std::string& address) : channel_(Connect(address)) {}

void BareClient::Upload(absl::Span<const uint8_t> bytes) {
  grpc::CompletionQueue queue;
  grpc::ClientContext context;
  context.set_initial_metadata_corked(true);
  grpc::GenericStub stub(channel_);
  const auto stream = stub.PrepareCall(&context, kMethod, &queue);
  stream->StartCall(nullptr);
  size_t sent = 0;
  const auto send = [&] {
    const auto part = bytes.subspan(sent, kMessageBytes);
    sent += part.size();
    const grpc::Slice slice(part.data(), part.size(), grpc::Slice::STATIC_SLICE);
    const grpc::ByteBuffer message(&slice, 1);
    if (sent < bytes.size()) {
      stream->Write(message, TagOf(kWritten));
    } else {
      stream->WriteLast(message, grpc::WriteOptions(), TagOf(kWritten));
    }
  };
  send();
  grpc::ByteBuffer answer;
  stream->Read(&answer, TagOf(kRead));
  for (int pending = 2; pending > 0;) {
    void* tag = nullptr;
    bool ok = false;
    Check(queue.Next(&tag, &ok) && ok, "write or read");
    if (tag == TagOf(kWritten) && sent < bytes.size()) {
      send();
    } else {
      --pending;
    }
  }
  grpc::Status status;
  stream->Finish(&status, TagOf(kFinished));
  Check(Await(queue, kFinished) && status.ok(), "status");
  queue.Shutdown();
}

void BareClient::Unary(int64_t bytes) {
  grpc::CompletionQueue queue;
  grpc::ClientContext context;
  grpc::GenericStub stub(channel_);
  const std::string content(static_cast<size_t>(bytes), 'x');
  const grpc::Slice slice(content);
  const auto call = stub.PrepareUnaryCall(&context, kMethod, grpc::ByteBuffer(&slice, 1), &queue);
  call->StartCall();
  grpc::ByteBuffer answer;
  grpc::Status status;
  call->Finish(&answer, &status, TagOf(kFinished));
  Check(Await(queue, kFinished) && status.ok(), "status");
  queue.Shutdown();
}

}  // namespace nni_compression::benchmarks
