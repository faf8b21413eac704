#include "tests/benchmarks/transport/bare_server.h"

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <cstdint>
#include <string>

namespace nni_compression::benchmarks {
namespace {

class Discard final : public grpc::ServerGenericBidiReactor {
 public:
  Discard() { StartRead(&message_); }

  void OnReadDone(bool ok) override {
    if (ok) {
      bytes_ += static_cast<int64_t>(message_.Length());
      message_.Clear();
      StartRead(&message_);
      return;
    }
    const grpc::Slice text(std::to_string(bytes_));
    answer_ = grpc::ByteBuffer(&text, 1);
    StartWriteAndFinish(&answer_, grpc::WriteOptions(), grpc::Status::OK);
  }

  void OnDone() override { delete this; }

 private:
  grpc::ByteBuffer message_;
  grpc::ByteBuffer answer_;
  int64_t bytes_ = 0;
};

class DiscardService final : public grpc::CallbackGenericService {
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext*) override {
    return new Discard;
  }
};

}  // namespace

class BareServer::Impl {
 public:
  Impl() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterCallbackGenericService(&service_);
    server_ = builder.BuildAndStart();
  }
  ~Impl() { server_->Shutdown(); }

  int port() const { return port_; }

 private:
  DiscardService service_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

BareServer::BareServer() : impl_(std::make_unique<Impl>()) {}
BareServer::~BareServer() = default;
int BareServer::port() const { return impl_->port(); }

}  // namespace nni_compression::benchmarks
