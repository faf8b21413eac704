#include "server/calls/stream_reactors.h"

#include <utility>

namespace nni_compression::server {
namespace {

// Common base of both kinds of reactor.
template <typename Reactor>
class StreamReactor : public Reactor, public StreamTransport {
 public:
  StreamReactor(grpc::CallbackServerContext* grpc, std::shared_ptr<CallContext> context,
                std::shared_ptr<StreamCall> call)
      : grpc_(grpc), context_(std::move(context)), call_(std::move(call)) {}

  // gRPC calls no reaction before the method that created the reactor has returned.
  void Begin() { call_->Start(this); }

  void StartRead(grpc::ByteBuffer* message) override { Reactor::StartRead(message); }
  void Finish(const absl::Status& status) override { Reactor::Finish(context_->Finish(status)); }
  void Cancel() override { grpc_->TryCancel(); }
  bool cancelled() const override { return grpc_->IsCancelled(); }

  void OnReadDone(bool ok) override { call_->OnReadDone(ok); }
  void OnCancel() override { call_->OnCancel(); }
  void OnDone() override {
    call_->OnDone();
    delete this;
  }

 protected:
  StreamCall& call() { return *call_; }
  CallContext& context() { return *context_; }

 private:
  grpc::CallbackServerContext* const grpc_;
  const std::shared_ptr<CallContext> context_;
  const std::shared_ptr<StreamCall> call_;
};

class BidiStream final : public StreamReactor<BidiReactor> {
 public:
  using StreamReactor::StreamReactor;
  void StartWrite(const grpc::ByteBuffer* message) override { BidiReactor::StartWrite(message); }
  void WriteAndFinish(const grpc::ByteBuffer* message, const absl::Status& status) override {
    StartWriteAndFinish(message, grpc::WriteOptions(), context().Finish(status));
  }
  void OnWriteDone(bool ok) override { call().OnWriteDone(ok); }
};

class ReadStream final : public StreamReactor<ReadReactor> {
 public:
  ReadStream(grpc::CallbackServerContext* grpc, std::shared_ptr<CallContext> context,
             std::shared_ptr<StreamCall> call, grpc::ByteBuffer* response)
      : StreamReactor(grpc, std::move(context), std::move(call)), response_(response) {}
  void StartWrite(const grpc::ByteBuffer*) override { Cancel(); }
  void WriteAndFinish(const grpc::ByteBuffer* message, const absl::Status& status) override {
    *response_ = *message;
    Finish(status);
  }

 private:
  grpc::ByteBuffer* const response_;
};

template <typename Reactor>
class RefusedStream final : public Reactor {
 public:
  explicit RefusedStream(const grpc::Status& status) { this->Finish(status); }
  void OnDone() override { delete this; }
};

}  // namespace

BidiReactor* StartBidi(grpc::CallbackServerContext* grpc, std::shared_ptr<CallContext> context,
                       std::shared_ptr<StreamCall> call) {
  auto* stream = new BidiStream(grpc, std::move(context), std::move(call));
  stream->Begin();
  return stream;
}

ReadReactor* StartRead(grpc::CallbackServerContext* grpc, std::shared_ptr<CallContext> context,
                       std::shared_ptr<StreamCall> call, grpc::ByteBuffer* response) {
  auto* stream = new ReadStream(grpc, std::move(context), std::move(call), response);
  stream->Begin();
  return stream;
}

BidiReactor* RefuseBidi(const grpc::Status& status) {
  return new RefusedStream<BidiReactor>(status);
}

ReadReactor* RefuseRead(const grpc::Status& status) {
  return new RefusedStream<ReadReactor>(status);
}

}  // namespace nni_compression::server
