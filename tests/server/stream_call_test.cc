// The life of a streaming call, over a transport that a test plays by hand.
#include "server/stream_call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "server/executor.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/latch.h"
#include "tests/testing/wire_messages.h"

namespace nni_compression::server {
namespace {

namespace v1 = ::nni::compression::v1;

using ::nni_compression::testing::Eventually;
using ::nni_compression::testing::FakeClock;
using ::nni_compression::testing::Header;
using ::nni_compression::testing::Latch;
using ::nni_compression::testing::MaskMessage;
using ::testing::HasSubstr;

constexpr int64_t kMinUploadRate = 10;  // bytes a second

// Operations stay pending until the test completes them. Thread-safe.
class ManualTransport : public StreamTransport {
 public:
  void StartRead(grpc::ByteBuffer* message) override {
    MutexLock lock(&mutex_);
    read_ = message;
  }
  void StartWrite(const grpc::ByteBuffer*) override {
    MutexLock lock(&mutex_);
    writing_ = true;
    ++writes_;
  }
  void SetResponse(const grpc::ByteBuffer&) override {}
  void Finish(const absl::Status& status) override {
    MutexLock lock(&mutex_);
    EXPECT_FALSE(status_) << "finished twice";
    EXPECT_FALSE(writing_) << "finished over a write";
    status_ = status;
  }
  void WriteAndFinish(const grpc::ByteBuffer*, const absl::Status& status) override {
    {
      MutexLock lock(&mutex_);
      ++writes_;
    }
    Finish(status);
  }
  void Cancel() override {
    MutexLock lock(&mutex_);
    torn_down_ = true;
  }
  bool cancelled() const override {
    MutexLock lock(&mutex_);
    return torn_down_;
  }

  bool reading() const {
    MutexLock lock(&mutex_);
    return read_ != nullptr;
  }
  bool writing() const {
    MutexLock lock(&mutex_);
    return writing_;
  }
  int writes() const {
    MutexLock lock(&mutex_);
    return writes_;
  }
  std::optional<absl::Status> status() const {
    MutexLock lock(&mutex_);
    return status_;
  }

  // The peer's part.
  void Send(StreamCall& call, const MaskMessage& message) {
    *TakeRead() = message.bytes();
    call.OnReadDone(true);
  }
  void HalfClose(StreamCall& call) {
    TakeRead();
    call.OnReadDone(false);
  }
  void TakeWrite(StreamCall& call) {
    {
      MutexLock lock(&mutex_);
      ASSERT_TRUE(writing_);
      writing_ = false;
    }
    call.OnWriteDone(true);
  }

 private:
  grpc::ByteBuffer* TakeRead() {
    MutexLock lock(&mutex_);
    EXPECT_NE(read_, nullptr) << "the call does not read";
    return std::exchange(read_, nullptr);
  }

  mutable Mutex mutex_;
  grpc::ByteBuffer* read_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  int writes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool torn_down_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<absl::Status> status_ ABSL_GUARDED_BY(mutex_);
};

// Answers each tensor with its own bytes, on a strand, once `allow` is set.
class EchoCall : public StreamCall {
 public:
  EchoCall(const Environment& environment, Executor* executor)
      : StreamCall(environment), strand_(Strand::Create(executor)) {}

  Latch allow;
  Latch computing;

 private:
  absl::Status OnOpen(wire::MessageReader& reader) override {
    v1::CalcMaskRequest::Open open;
    return reader.Parse(&open);
  }
  absl::StatusOr<Admission> OnHeader(const v1::TensorHeader&) override {
    return Admission{true, 0};
  }
  absl::Status OnTensor(ReceivedTensor tensor) override {
    Run(*strand_, [this, tensor = std::make_shared<ReceivedTensor>(std::move(tensor))] {
      computing.Set();
      allow.Wait();
      Payload payload;
      payload.bytes = tensor->bytes;
      payload.total = tensor->header.byte_length();
      Reply reply;
      reply.payloads.push_back(payload);
      reply.memory = std::make_shared<Reservation>(std::move(tensor->memory));
      Push(std::move(reply));
      return absl::OkStatus();
    });
    return absl::OkStatus();
  }
  absl::Status OnHalfClose() override {
    Run(*strand_, [this] {
      Complete();
      return absl::OkStatus();
    });
    return absl::OkStatus();
  }

  const std::shared_ptr<Strand> strand_;
};

class StreamCallTest : public ::testing::Test {
 protected:
  StreamCallTest() { call_->Start(&transport_); }
  ~StreamCallTest() override {
    call_->allow.Set();
    if (!done_) End();
    timers_.Stop();
  }

  // gRPC's last word.
  void End() {
    done_ = true;
    call_->OnDone();
  }

  void SendTensor(uint32_t index = 0) {
    MaskMessage message;
    if (index == 0) message.Open("s");
    transport_.Send(*call_, message.Tensor(Header(index, "a", {1024}), std::string(4096, 'x')));
  }

  void FlushTimers() {
    Latch ran;
    timers_.RunAt(clock_.Now(), [&] { ran.Set(); });
    ran.Wait();
  }

  bool Finished() {
    return Eventually([&] { return transport_.status().has_value(); });
  }

  FakeClock clock_;
  TimerThread timers_{&clock_};
  std::shared_ptr<MemoryBudget> budget_ = MemoryBudget::Create(
      6000, [this](std::function<void()> function) { timers_.Run(std::move(function)); });
  ManualTransport transport_;
  Executor executor_{1};
  std::shared_ptr<EchoCall> call_ = std::make_shared<EchoCall>(
      StreamCall::Environment{budget_.get(), &timers_, absl::Seconds(60), {}, {}, kMinUploadRate},
      &executor_);
  bool done_ = false;
};

TEST_F(StreamCallTest, AnswersAndEndsWellAfterTheLastWrite) {
  call_->allow.Set();
  SendTensor();
  ASSERT_TRUE(Eventually([&] { return transport_.writing(); }));
  transport_.HalfClose(*call_);
  EXPECT_FALSE(transport_.status());
  EXPECT_EQ(budget_->reserved(), 4096) << "until the peer has it";
  transport_.TakeWrite(*call_);
  ASSERT_TRUE(Finished());
  EXPECT_TRUE(transport_.status()->ok()) << *transport_.status();
  EXPECT_EQ(budget_->reserved(), 0);
}

TEST_F(StreamCallTest, TheLastMessageAndTheEndGoTogether) {
  SendTensor();
  transport_.HalfClose(*call_);
  call_->allow.Set();
  ASSERT_TRUE(Finished());
  EXPECT_TRUE(transport_.status()->ok()) << *transport_.status();
  EXPECT_EQ(transport_.writes(), 1);
  EXPECT_EQ(budget_->reserved(), 4096) << "until the peer has it";
  End();
  EXPECT_EQ(budget_->reserved(), 0);
}

TEST_F(StreamCallTest, SmallAnswersThatComeSoonGoInOneMessage) {
  MaskMessage message;
  message.Open("s");
  for (uint32_t i = 0; i < 10; ++i) message.Tensor(Header(i, "a", {10}), std::string(40, 'x'));
  transport_.Send(*call_, message);
  call_->allow.Set();
  ASSERT_TRUE(Eventually([&] { return transport_.writing(); }));
  transport_.TakeWrite(*call_);
  transport_.HalfClose(*call_);
  ASSERT_TRUE(Finished());
  EXPECT_EQ(transport_.writes(), 1);
}

TEST_F(StreamCallTest, ReadsOnlyWhenThereIsMemoryForWhatComes) {
  SendTensor();
  call_->computing.Wait();
  SendTensor(1);
  EXPECT_FALSE(transport_.reading());
  EXPECT_EQ(budget_->waiting(), 1);
  call_->allow.Set();
  ASSERT_TRUE(Eventually([&] { return transport_.writing(); }));
  transport_.TakeWrite(*call_);
  EXPECT_TRUE(Eventually([&] { return transport_.reading(); }));
  EXPECT_EQ(budget_->waiting(), 0);
}

TEST_F(StreamCallTest, CancellingWhileItReadsGivesMemoryBack) {
  transport_.Send(*call_, MaskMessage().Open("s").Add(Header(0, "a", {1024})).Chunk(0, 0, "x"));
  EXPECT_EQ(budget_->reserved(), 4096);
  call_->OnCancel();
  EXPECT_EQ(budget_->reserved(), 0);
  ASSERT_TRUE(Finished());
  EXPECT_EQ(transport_.status()->code(), absl::StatusCode::kCancelled);
}

TEST_F(StreamCallTest, CancellingWhileItWaitsForMemoryLeavesTheQueue) {
  auto others = budget_->TryReserve(5000);
  SendTensor();
  EXPECT_EQ(budget_->waiting(), 1);
  call_->OnCancel();
  EXPECT_EQ(budget_->waiting(), 0);
  others.reset();
  EXPECT_EQ(budget_->reserved(), 0);
}

TEST_F(StreamCallTest, CancellingWhileItComputesDropsTheAnswerAndWhatIsQueued) {
  SendTensor();
  call_->computing.Wait();
  call_->OnCancel();
  ASSERT_TRUE(Finished());
  call_->allow.Set();
  EXPECT_TRUE(Eventually([&] { return budget_->reserved() == 0; }));
  EXPECT_FALSE(transport_.writing());
}

TEST_F(StreamCallTest, CancellingWhileItWritesEndsAfterTheWrite) {
  call_->allow.Set();
  SendTensor();
  ASSERT_TRUE(Eventually([&] { return transport_.writing(); }));
  call_->OnCancel();
  EXPECT_FALSE(transport_.status());
  transport_.TakeWrite(*call_);
  ASSERT_TRUE(Finished());
  EXPECT_EQ(transport_.status()->code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(budget_->reserved(), 0);
}

TEST_F(StreamCallTest, HalfClosingWithoutACommitFailsTheCall) {
  transport_.Send(*call_, MaskMessage().Open("s").Add(Header(0, "a", {1024})).Chunk(0, 0, "x"));
  transport_.HalfClose(*call_);
  ASSERT_TRUE(Finished());
  EXPECT_EQ(transport_.status()->code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(transport_.status()->message()), HasSubstr("was not committed"));
  EXPECT_EQ(budget_->reserved(), 0);
}

TEST_F(StreamCallTest, APeerThatSendsNothingLosesTheCallAndItsMemory) {
  transport_.Send(*call_, MaskMessage().Open("s").Add(Header(0, "a", {1024})).Chunk(0, 0, "x"));
  clock_.Advance(absl::Seconds(59));
  FlushTimers();
  EXPECT_FALSE(transport_.status());
  clock_.Advance(absl::Seconds(1));
  FlushTimers();
  ASSERT_TRUE(transport_.status());
  EXPECT_EQ(transport_.status()->code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(budget_->reserved(), 0);
}

TEST_F(StreamCallTest, APeerThatSendsTooSlowlyLosesTheCallAndItsMemory) {
  transport_.Send(*call_, MaskMessage().Open("s").Add(Header(0, "a", {1024})).Chunk(0, 0, "x"));
  for (uint64_t at = 1; at < 3; ++at) {
    EXPECT_FALSE(transport_.status());
    clock_.Advance(absl::Seconds(30));
    FlushTimers();
    transport_.Send(*call_, MaskMessage().Chunk(0, at, "x"));
  }
  ASSERT_TRUE(transport_.status());
  EXPECT_EQ(transport_.status()->code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(transport_.status()->message()),
              HasSubstr("in 1m; it must be at least 10 a second"));
  EXPECT_EQ(budget_->reserved(), 0);
}

TEST_F(StreamCallTest, APeerThatSendsAtTheMinimumRateGoesOn) {
  transport_.Send(*call_, MaskMessage().Open("s").Add(Header(0, "a", {1024})).Chunk(0, 0, "x"));
  const std::string piece(30 * kMinUploadRate, 'x');
  for (uint64_t at = 1; at + piece.size() < 4096; at += piece.size()) {
    clock_.Advance(absl::Seconds(30));
    FlushTimers();
    transport_.Send(*call_, MaskMessage().Chunk(0, at, piece));
  }
  EXPECT_FALSE(transport_.status());
}

TEST_F(StreamCallTest, PausesBetweenTensorsAreNoSlowUpload) {
  call_->allow.Set();
  for (uint32_t i = 0; i < 5; ++i) {
    SendTensor(i);
    ASSERT_TRUE(Eventually([&] { return transport_.writing(); }));
    transport_.TakeWrite(*call_);
    ASSERT_TRUE(Eventually([&] { return budget_->reserved() == 0; }));
    clock_.Advance(absl::Seconds(59));
    FlushTimers();
  }
  EXPECT_FALSE(transport_.status());
}

TEST_F(StreamCallTest, APeerThatDoesNotReadIsTornDown) {
  call_->allow.Set();
  SendTensor();
  ASSERT_TRUE(Eventually([&] { return transport_.writing(); }));
  clock_.Advance(absl::Seconds(60));
  FlushTimers();
  EXPECT_TRUE(transport_.cancelled()) << "a status would not get through";
}

TEST_F(StreamCallTest, ComputingAndWaitingForMemoryAreNotTheFaultOfThePeer) {
  SendTensor();
  call_->computing.Wait();
  for (int i = 0; i < 3; ++i) {
    clock_.Advance(absl::Seconds(60));
    FlushTimers();
  }
  EXPECT_FALSE(transport_.status());
  SendTensor(1);  // waits for the memory of the first
  clock_.Advance(absl::Seconds(60));
  FlushTimers();
  EXPECT_FALSE(transport_.status());
  EXPECT_FALSE(transport_.cancelled());
}

TEST_F(StreamCallTest, NothingIsTouchedAfterTheTransportIsGone) {
  SendTensor();
  call_->computing.Wait();
  call_->OnCancel();
  ASSERT_TRUE(Finished());
  End();
  call_->allow.Set();
  clock_.Advance(absl::Seconds(600));
  FlushTimers();
  EXPECT_TRUE(Eventually([&] { return budget_->reserved() == 0; }));
}

}  // namespace
}  // namespace nni_compression::server
