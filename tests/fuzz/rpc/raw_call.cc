#include "tests/fuzz/rpc/raw_call.h"

#include <gtest/gtest.h>

#include <chrono>

namespace nni_compression::fuzz {

RawCall::RawCall(grpc::GenericStub& stub, const std::string& method, const std::string& tenant,
                 std::chrono::microseconds timeout) {
  context_.AddMetadata("tenant", tenant);
  context_.AddMetadata("nni-route", "fuzz");
  context_.set_deadline(std::chrono::system_clock::now() + timeout);
  stream_ = stub.PrepareCall(&context_, method, &queue_);
  stream_->StartCall(Tag(kStart));
  if (Wait(kStart)) {
    reading_ = true;
    stream_->Read(&reply_, Tag(kRead));
  }
}

RawCall::~RawCall() {
  if (!finished_) {
    context_.TryCancel();
    Finish();
  }
  queue_.Shutdown();
  void* tag;
  bool ok;
  while (queue_.Next(&tag, &ok)) {
  }
}

bool RawCall::Write(const std::string& message) {
  if (half_closed_ || finished_) return false;
  const grpc::Slice slice(message);
  stream_->Write(grpc::ByteBuffer(&slice, 1), Tag(kWrite));
  return Wait(kWrite);
}

void RawCall::HalfClose() {
  if (half_closed_ || finished_) return;
  half_closed_ = true;
  stream_->WritesDone(Tag(kHalfClose));
  Wait(kHalfClose);
}

const grpc::Status& RawCall::Finish() {
  if (finished_) return status_;
  while (reading_) {
    if (!Wait(kRead)) break;
  }
  finished_ = true;
  stream_->Finish(&status_, Tag(kFinish));
  Wait(kFinish);
  return status_;
}

bool RawCall::Wait(Step step) {
  const auto deadline = std::chrono::system_clock::now() + std::chrono::minutes(1);
  while (true) {
    void* tag = nullptr;
    bool ok = false;
    if (queue_.AsyncNext(&tag, &ok, deadline) != grpc::CompletionQueue::GOT_EVENT) {
      ADD_FAILURE() << "step " << step << " of a call does not end";
      context_.TryCancel();
      return false;
    }
    const auto done = static_cast<Step>(reinterpret_cast<intptr_t>(tag));
    if (done == kRead) {
      reading_ = ok;
      if (ok) {
        replies_.push_back(reply_);
        reply_.Clear();
        stream_->Read(&reply_, Tag(kRead));
      }
    }
    if (done == step) return ok;
  }
}

}  // namespace nni_compression::fuzz
