#include "client/cpp/stream.h"

#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"

namespace nni_compression::internal {
namespace {

// The events of the completion queue.
enum Event : intptr_t { kWritten = 1, kRead = 2, kFinished = 3 };

void* TagOf(Event event) { return reinterpret_cast<void*>(event); }

// One call and its completion queue. Used by one thread, which also does the transport's work while
// it waits for events.
class Stream {
 public:
  Stream(const Connection& connection, const StreamCall& call)
      : connection_(connection),
        route_(call.route),
        context_(connection.NewContext(call.deadline, call.route)),
        stub_(connection.channel()) {
    context_->set_initial_metadata_corked(true);  // sent with the first message
    stream_ = stub_.PrepareCall(
        context_.get(), absl::StrCat("/nni.compression.v1.CompressionService/", call.method),
        &queue_);
    stream_->StartCall(nullptr);
  }

  Outcome Run(Upload& upload, absl::FunctionRef<absl::Status(grpc::ByteBuffer)> on_message) {
    absl::Status local;  // why the client cancelled the call
    Send(upload);
    grpc::ByteBuffer incoming;
    stream_->Read(&incoming, TagOf(kRead));
    for (bool reading = true; reading || writing_;) {
      void* tag = nullptr;
      bool ok = false;
      queue_.Next(&tag, &ok);
      if (tag == TagOf(kWritten)) {
        writing_ = false;
        if (ok && !upload.done()) Send(upload);
      } else if (!ok) {
        reading = false;  // the server has sent its last message
      } else {
        if (local.ok()) local = on_message(incoming);
        if (!local.ok()) context_->TryCancel();
        incoming.Clear();
        stream_->Read(&incoming, TagOf(kRead));
      }
    }
    grpc::Status status;
    stream_->Finish(&status, TagOf(kFinished));
    WaitFor(kFinished);
    Outcome outcome = connection_.OutcomeOf(status, *context_, route_);
    if (!local.ok()) outcome = Outcome{local};
    return outcome;
  }

  // Drops the call and waits until nothing refers to the lent memory any more. The transport may
  // still be writing, so this thread continues to poll for it.
  void Release(const Loans& loans) {
    stream_.reset();
    context_.reset();
    void* tag = nullptr;
    bool ok = false;
    while (!loans.all_returned()) {
      queue_.AsyncNext(&tag, &ok, std::chrono::system_clock::now() + std::chrono::milliseconds(1));
    }
    queue_.Shutdown();
    while (queue_.Next(&tag, &ok)) {
    }
  }

 private:
  void Send(Upload& upload) {
    const grpc::ByteBuffer message = upload.NextMessage();
    writing_ = true;
    if (upload.done()) {
      stream_->WriteLast(message, grpc::WriteOptions(), TagOf(kWritten));
    } else {
      stream_->Write(message, TagOf(kWritten));
    }
  }

  void WaitFor(Event event) {
    void* tag = nullptr;
    bool ok = false;
    while (queue_.Next(&tag, &ok) && tag != TagOf(event)) {
    }
  }

  const Connection& connection_;
  const Route& route_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::ClientContext> context_;
  grpc::GenericStub stub_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
  bool writing_ = false;
};

}  // namespace

Outcome RunStream(const Connection& connection, const StreamCall& call, Upload& upload,
                  const Loans& loans,
                  absl::FunctionRef<absl::Status(const grpc::ByteBuffer& message)> on_message) {
  Stream stream(connection, call);
  Outcome outcome = stream.Run(upload, on_message);
  stream.Release(loans);
  return outcome;
}

}  // namespace nni_compression::internal
