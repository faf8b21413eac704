// A real server in the test's process, and what tests do with it.
#ifndef NNI_COMPRESSION_TESTS_TESTING_TEST_SERVER_H_
#define NNI_COMPRESSION_TESTS_TESTING_TEST_SERVER_H_

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "compression/algorithms/registry.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "nni/compression/v1/compression.grpc.pb.h"
#include "server/server.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/latch.h"
#include "tests/testing/wire_messages.h"

namespace nni_compression::testing {

// A pruner ("slow") that keeps everything, once the test lets it.
struct SlowPruner {
  Latch computing;  // set by the algorithm
  Latch release;    // set by the test
};

// Takes the tenant from the metadata key `tenant`; "nobody" is refused.
std::shared_ptr<server::Authenticator> TenantFromMetadata();

// A server on port 0 with a clock that stands still, and clients of it.
class TestServer {
 public:
  // Fills in what tests do not care about. `algorithms` come beside the built-in ones.
  explicit TestServer(server::ServerOptions options = {},
                      const std::vector<compression::AlgorithmInfo>& algorithms = {});
  ~TestServer();

  server::Server& server() { return *server_; }
  const server::Server& server() const { return *server_; }
  FakeClock& clock() { return clock_; }
  SlowPruner& slow() { return *slow_; }
  v1::CompressionService::Stub& stub() { return *stub_; }
  grpc::health::v1::Health::Stub& health() { return *health_; }

  // A client of its own connection.
  std::unique_ptr<v1::CompressionService::Stub> NewStub();

  // Whether the memory reserved comes to be `bytes`.
  bool MemoryReturnsTo(int64_t bytes);

  // Moves the clock, and waits until that has ended what it ends.
  void Advance(absl::Duration by) { clock_.Advance(by); }

 private:
  FakeClock clock_;
  std::shared_ptr<SlowPruner> slow_ = std::make_shared<SlowPruner>();
  compression::Registry registry_;
  std::unique_ptr<server::Server> server_;
  std::unique_ptr<v1::CompressionService::Stub> stub_;
  std::unique_ptr<grpc::health::v1::Health::Stub> health_;
};

// A request for `algorithm` with one rule over all given Linear layers, which have float32 weights.
v1::BindModelRequest BindRequest(const std::string& algorithm,
                                 const std::map<std::string, double>& options,
                                 const std::map<std::string, std::vector<int64_t>>& layers);

// Binds, and answers the session's id. The call has to succeed.
std::string Bind(v1::CompressionService::Stub& stub, const v1::BindModelRequest& request);

// One streaming call. `Call` is a member of the stub: &Stub::CalcMask.
template <typename Request, typename Response>
class Stream {
 public:
  using Reader = grpc::ClientReaderWriter<Request, Response>;

  template <typename Start>
  explicit Stream(Start start) : stream_(start(&context)) {}
  ~Stream() {
    context.TryCancel();
    if (!finished_) Finish();
  }

  bool Send(const Message<Request>& message) {
    auto copy = message;
    return stream_->Write(copy.proto());
  }
  bool Read(Response* response) { return stream_->Read(response); }
  void HalfClose() { stream_->WritesDone(); }

  // All that still comes, as one message.
  Response ReadAll() {
    Response all, next;
    while (stream_->Read(&next)) all.MergeFrom(next);
    return all;
  }
  grpc::Status Finish() {
    finished_ = true;
    return stream_->Finish();
  }

  grpc::ClientContext context;

 private:
  std::unique_ptr<Reader> stream_;
  bool finished_ = false;
};

// What is done to a context before its call begins.
using Prepare = std::function<void(grpc::ClientContext*)>;

class MaskStream : public Stream<v1::CalcMaskRequest, v1::CalcMaskResponse> {
 public:
  explicit MaskStream(v1::CompressionService::Stub& stub, const Prepare& prepare = nullptr)
      : Stream([&](grpc::ClientContext* context) {
          if (prepare) prepare(context);
          return stub.CalcMask(context);
        }) {}
};
class QuantizeStream : public Stream<v1::QuantizeWeightRequest, v1::QuantizeWeightResponse> {
 public:
  explicit QuantizeStream(v1::CompressionService::Stub& stub, const Prepare& prepare = nullptr)
      : Stream([&](grpc::ClientContext* context) {
          if (prepare) prepare(context);
          return stub.QuantizeWeight(context);
        }) {}
};
class StatisticsStream : public Stream<v1::AddStatisticsRequest, v1::AddStatisticsResponse> {
 public:
  explicit StatisticsStream(v1::CompressionService::Stub& stub)
      : Stream([&](grpc::ClientContext* context) { return stub.AddStatistics(context); }) {}
};
class ExportStream : public Stream<v1::ExportRequest, v1::ExportResponse> {
 public:
  explicit ExportStream(v1::CompressionService::Stub& stub)
      : Stream([&](grpc::ClientContext* context) { return stub.Export(context); }) {}
};

// A whole call: sends, half-closes, reads everything.
template <typename StreamType, typename Request, typename Response>
grpc::Status RunCall(v1::CompressionService::Stub& stub, const Message<Request>& message,
                     Response* response) {
  StreamType stream(stub);
  stream.Send(message);
  stream.HalfClose();
  *response = stream.ReadAll();
  return stream.Finish();
}

inline grpc::Status CalcMask(v1::CompressionService::Stub& stub, const MaskMessage& message,
                             v1::CalcMaskResponse* response) {
  return RunCall<MaskStream>(stub, message, response);
}

// Steps; `message` has opened the call.
grpc::Status Step(v1::CompressionService::Stub& stub, const StepMessage& message,
                  v1::StepResponse* response);

grpc::Status UpdateEpoch(v1::CompressionService::Stub& stub, const std::string& id, int64_t epoch,
                         v1::UpdateEpochResponse* response);
grpc::Status ReportResults(v1::CompressionService::Stub& stub, const std::string& id,
                           const std::map<std::string, double>& results);
grpc::Status KeepAlive(v1::CompressionService::Stub& stub, const std::string& id);
grpc::Status CloseSession(v1::CompressionService::Stub& stub, const std::string& id);
grpc::Status GetSession(v1::CompressionService::Stub& stub, const std::string& id,
                        v1::GetSessionResponse* response);

// The payload of a reply's tensor or file.
template <typename Response>
std::string PayloadOf(const Response& response, uint32_t index) {
  std::string payload;
  for (const v1::Chunk& chunk : response.chunks()) {
    if (chunk.index() == index) payload += chunk.payload();
  }
  return payload;
}

}  // namespace nni_compression::testing

#endif  // NNI_COMPRESSION_TESTS_TESTING_TEST_SERVER_H_
