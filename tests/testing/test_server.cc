#include "tests/testing/test_server.h"

#include <grpc/grpc.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "compression/algorithms/algorithm.h"
#include "server/base/log.h"

namespace nni_compression::testing {
namespace {

using compression::Mask;
using compression::Pruner;

class SlowAlgorithm : public Pruner {
 public:
  explicit SlowAlgorithm(std::shared_ptr<SlowPruner> control) : control_(std::move(control)) {}

  absl::StatusOr<Mask> CalcMask(const compression::Layer& layer, const compression::Weight&,
                                compression::LayerState&, compression::Clock) const override {
    control_->computing.Set();
    control_->release.Wait();
    return Mask::Ones(layer.elements);
  }

 private:
  const std::shared_ptr<SlowPruner> control_;
};

compression::AlgorithmInfo SlowInfo(std::shared_ptr<SlowPruner> control) {
  compression::AlgorithmInfo info;
  info.name = "slow";
  info.kind = compression::AlgorithmKind::kPruner;
  info.create =
      [control](
          const compression::Options&) -> absl::StatusOr<std::unique_ptr<compression::Compressor>> {
    return std::make_unique<SlowAlgorithm>(control);
  };
  return info;
}

class MetadataAuthenticator : public server::Authenticator {
 public:
  absl::StatusOr<server::Caller> Authenticate(const grpc::ServerContextBase& context,
                                              absl::string_view) override {
    const auto it = context.client_metadata().find("tenant");
    if (it == context.client_metadata().end()) return CallerOf("default");
    return CallerOf(std::string(it->second.data(), it->second.size()));
  }
  absl::StatusOr<server::Caller> AuthenticateLocal(const Metadata& metadata) override {
    const auto it = metadata.find("tenant");
    return CallerOf(it == metadata.end() ? "default" : it->second);
  }

 private:
  static absl::StatusOr<server::Caller> CallerOf(const std::string& tenant) {
    if (tenant == "nobody") return absl::UnauthenticatedError("who are you?");
    return server::Caller{tenant};
  }
};

}  // namespace

std::shared_ptr<server::Authenticator> TenantFromMetadata() {
  return std::make_shared<MetadataAuthenticator>();
}

TestServer::TestServer(server::ServerOptions options,
                       const std::vector<compression::AlgorithmInfo>& algorithms)
    : registry_(compression::Registry::Builtin()) {
  // Held for good: giving up the last hold on gRPC waits for its pollers, for up to 10 s.
  static const bool held = (grpc_init(), true);
  (void)held;
  EXPECT_TRUE(registry_.Add(SlowInfo(slow_)).ok());
  for (const auto& info : algorithms) EXPECT_TRUE(registry_.Add(info).ok());
  options.listen = "127.0.0.1:0";
  if (options.clock == nullptr) options.clock = &clock_;
  options.registry = &registry_;
  if (options.memory_budget == 0) options.memory_budget = 256 << 20;
  if (options.compute_threads == 0) options.compute_threads = 2;
  auto started = server::Server::Start(options);
  EXPECT_TRUE(started.ok()) << started.status();
  server_ = *std::move(started);
  stub_ = NewStub();
  health_ = grpc::health::v1::Health::NewStub(grpc::CreateChannel(
      absl::StrCat("127.0.0.1:", server_->port()), grpc::InsecureChannelCredentials()));
}

TestServer::~TestServer() {
  slow_->release.Set();
  stub_.reset();
  health_.reset();
  server_.reset();
}

std::unique_ptr<v1::CompressionService::Stub> TestServer::NewStub() {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return v1::CompressionService::NewStub(grpc::CreateCustomChannel(
      absl::StrCat("127.0.0.1:", server_->port()), grpc::InsecureChannelCredentials(), arguments));
}

bool TestServer::MemoryReturnsTo(int64_t bytes) {
  return Eventually([&] { return server_->memory_reserved() == bytes; });
}

v1::BindModelRequest BindRequest(const std::string& algorithm,
                                 const std::map<std::string, double>& options,
                                 const std::map<std::string, std::vector<int64_t>>& layers) {
  v1::BindModelRequest request;
  request.set_algorithm(algorithm);
  request.set_framework("pytorch");
  auto& rule = *request.add_config_list()->mutable_fields();
  rule["op_types"].mutable_list_value()->add_values()->set_string_value("default");
  for (const auto& [name, value] : options) rule[name].set_number_value(value);
  for (const auto& [name, shape] : layers) {
    v1::Layer* layer = request.add_layers();
    layer->set_name(name);
    layer->set_op_type("Linear");
    layer->set_dtype(v1::DATA_TYPE_FLOAT32);
    for (const int64_t dimension : shape) layer->add_shape(dimension);
  }
  return request;
}

std::string Bind(v1::CompressionService::Stub& stub, const v1::BindModelRequest& request) {
  grpc::ClientContext context;
  v1::BindModelResponse response;
  const grpc::Status status = stub.BindModel(&context, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response.session_id();
}

grpc::Status Step(v1::CompressionService::Stub& stub, const StepMessage& message,
                  v1::StepResponse* response) {
  grpc::ClientContext context;
  const auto writer = stub.Step(&context, response);
  auto copy = message;
  writer->Write(copy.proto());
  writer->WritesDone();
  return writer->Finish();
}

grpc::Status UpdateEpoch(v1::CompressionService::Stub& stub, const std::string& id, int64_t epoch,
                         v1::UpdateEpochResponse* response) {
  grpc::ClientContext context;
  v1::UpdateEpochRequest request;
  request.set_session_id(id);
  request.set_epoch(epoch);
  return stub.UpdateEpoch(&context, request, response);
}

grpc::Status ReportResults(v1::CompressionService::Stub& stub, const std::string& id,
                           const std::map<std::string, double>& results) {
  grpc::ClientContext context;
  v1::ReportResultsRequest request;
  v1::ReportResultsResponse response;
  request.set_session_id(id);
  request.mutable_results()->insert(results.begin(), results.end());
  return stub.ReportResults(&context, request, &response);
}

grpc::Status KeepAlive(v1::CompressionService::Stub& stub, const std::string& id) {
  grpc::ClientContext context;
  v1::KeepAliveRequest request;
  v1::KeepAliveResponse response;
  request.set_session_id(id);
  return stub.KeepAlive(&context, request, &response);
}

grpc::Status CloseSession(v1::CompressionService::Stub& stub, const std::string& id) {
  grpc::ClientContext context;
  v1::CloseSessionRequest request;
  v1::CloseSessionResponse response;
  request.set_session_id(id);
  return stub.CloseSession(&context, request, &response);
}

grpc::Status GetSession(v1::CompressionService::Stub& stub, const std::string& id,
                        v1::GetSessionResponse* response) {
  grpc::ClientContext context;
  v1::GetSessionRequest request;
  request.set_session_id(id);
  return stub.GetSession(&context, request, response);
}

}  // namespace nni_compression::testing
