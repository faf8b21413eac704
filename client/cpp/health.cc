#include "client/cpp/health.h"

#include <google/protobuf/io/coded_stream.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include "absl/strings/str_cat.h"

namespace nni_compression::internal {
namespace {

// HealthCheckResponse is one enum, field 1. With generated code for it, programs that link their
// own would not start: protobuf refuses a second registration of a file.
constexpr uint32_t kStatusTag = 1 << 3;
constexpr uint64_t kServing = 1;

uint64_t ServingStatus(grpc::ByteBuffer& response) {
  grpc::ProtoBufferReader bytes(&response);
  google::protobuf::io::CodedInputStream input(&bytes);
  uint64_t status = 0;
  if (input.ReadTag() != kStatusTag || !input.ReadVarint64(&status)) return 0;
  return status;
}

}  // namespace

Outcome CheckHealth(const Connection& connection, absl::Time deadline, const Route& route) {
  const auto context = connection.NewContext(deadline, route);
  grpc::CompletionQueue queue;
  grpc::GenericStub stub(connection.channel());
  const grpc::ByteBuffer request(nullptr, 0);  // the service "": the whole server
  auto call = stub.PrepareUnaryCall(context.get(), "/grpc.health.v1.Health/Check", request, &queue);
  call->StartCall();
  grpc::ByteBuffer response;
  grpc::Status status;
  call->Finish(&response, &status, &queue);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  queue.Shutdown();
  while (queue.Next(&tag, &ok)) {
  }
  Outcome outcome = connection.OutcomeOf(status, *context, route);
  if (outcome.status.ok() && ServingStatus(response) != kServing) {
    outcome.status =
        absl::UnavailableError(absl::StrCat("server ", connection.address(), " is not serving"));
  }
  return outcome;
}

}  // namespace nni_compression::internal
