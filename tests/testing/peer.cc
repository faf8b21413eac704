// A client that sends one byte of a tensor of four floats and then waits to be killed:
// peer ADDRESS SESSION LAYER
#include <grpcpp/create_channel.h>
#include <unistd.h>

#include "nni/compression/v1/compression.grpc.pb.h"
#include "tests/testing/wire_messages.h"

int main(int argc, char** argv) {
  namespace v1 = ::nni::compression::v1;
  if (argc != 4) return 2;
  const auto stub = v1::CompressionService::NewStub(
      grpc::CreateChannel(argv[1], grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  const auto stream = stub->CalcMask(&context);
  nni_compression::testing::MaskMessage message;
  message.Open(argv[2]).Add(nni_compression::testing::Header(0, argv[3], {4})).Chunk(0, 0, "x");
  if (!stream->Write(message.proto())) return 1;
  while (true) pause();
}
