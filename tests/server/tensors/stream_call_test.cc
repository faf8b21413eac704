// The life of a streaming call, over a transport that a test plays by hand.
#include "server/tensors/stream_call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "server/base/executor.h"
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

// Answers each tensor with its own bytes, on a strand, once `allow` is set. Says what hooks find it
// after its end.
class EchoHandler : public StreamHandler {
 public:
  struct Control {
    Latch allow;
    Latch computing;
    Latch ended;
    Latch in_hook;                      // OnTensor is running
    std::function<void()> during_hook;  // in it; null: nothing
    std::atomic<int> faults{0};
    // What OnOpen waits for; null: nothing.
    std::function<void(StreamHandler::Ready)> load;
  };

  EchoHandler(std::shared_ptr<Control> control, Executor* executor, StreamCall* call)
      : control_(std::move(control)), call_(call), strand_(Strand::Create(executor)) {}

 private:
  // Hooks come one at a time, and none after the end.
  class Hook {
   public:
    explicit Hook(EchoHandler* handler) : handler_(handler) {
      if (handler->ended_ || handler->hooks_++ > 0) ++handler->control_->faults;
    }
    ~Hook() { --handler_->hooks_; }

   private:
    EchoHandler* const handler_;
  };

  absl::StatusOr<bool> OnOpen(wire::MessageReader& reader) override {
    const Hook hook(this);
    v1::CalcMaskRequest::Open open;
    if (absl::Status status = reader.Parse(&open); !status.ok()) return status;
    return control_->load == nullptr;
  }
  Loader MakeLoader() override {
    const Hook hook(this);
    return control_->load;
  }
  absl::StatusOr<Admission> OnHeader(const v1::TensorHeader&, Reservation&) override {
    const Hook hook(this);
    return Admission{true, 0};
  }
  absl::Status OnTensor(ReceivedTensor tensor) override {
    const Hook hook(this);
    control_->in_hook.Set();
    if (control_->during_hook) control_->during_hook();
    call_->Run(*strand_,
               [this, tensor = std::make_shared<ReceivedTensor>(
                          std::move(tensor))]() -> absl::StatusOr<Reply> {
                 if (ended_) ++control_->faults;
                 control_->computing.Set();
                 control_->allow.Wait();
                 Payload payload;
                 payload.bytes = tensor->bytes;
                 payload.total = tensor->header.byte_length();
                 Reply reply;
                 reply.payloads.push_back(payload);
                 reply.memory = std::make_shared<Reservation>(std::move(tensor->memory));
                 reply.bookkeeping = std::move(tensor->bookkeeping);
                 if (ended_) ++control_->faults;
                 return reply;
               });
    return absl::OkStatus();
  }
  absl::Status OnHalfClose() override {
    const Hook hook(this);
    call_->Run(*strand_, []() -> absl::StatusOr<Reply> {
      Reply reply;
      reply.last = true;
      return reply;
    });
    return absl::OkStatus();
  }
  void OnEnd() override {
    if (ended_.exchange(true)) ++control_->faults;
    control_->ended.Set();
  }

  const std::shared_ptr<Control> control_;
  StreamCall* const call_;
  const std::shared_ptr<Strand> strand_;
  std::atomic<int> hooks_{0};
  std::atomic<bool> ended_{false};
};

std::shared_ptr<StreamCall> MakeCall(const StreamCall::Environment& environment,
                                     const std::shared_ptr<EchoHandler::Control>& control,
                                     Executor* executor) {
  return StreamCall::Create(environment, [&](StreamCall* call) {
    return std::make_unique<EchoHandler>(control, executor, call);
  });
}

class StreamCallTest : public ::testing::Test {
 protected:
  StreamCallTest() { call_->Start(&transport_); }
  ~StreamCallTest() override {
    control_->allow.Set();
    if (!done_) End();
    control_->ended.Wait();
    EXPECT_EQ(control_->faults, 0);
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

  // Waits until the timers, and what they posted, have run.
  void FlushTimers() {
    Latch ran;
    timers_.RunAt(clock_.Now(), [&] { posted_.Schedule([&] { ran.Set(); }); });
    ran.Wait();
  }

  // Waits until the tasks that were posted have run.
  void FlushTasks() {
    Latch ran;
    executor_.Schedule([&] { ran.Set(); });
    ran.Wait();
  }

  bool Finished() {
    return Eventually([&] { return transport_.status().has_value(); });
  }

  // Without what the call keeps account with.
  int64_t PayloadReserved() const {
    const int64_t reserved = budget_->reserved();
    return reserved - reserved % 4096;
  }
  bool GivesEverythingBack() {
    return Eventually([&] { return budget_->reserved() == 0; });
  }

  FakeClock clock_;
  TimerThread timers_{&clock_};
  Executor posted_{1};  // what waited for memory or time
  std::shared_ptr<MemoryBudget> budget_ = MemoryBudget::Create(
      6000, [this](std::function<void()> function) { posted_.Schedule(std::move(function)); });
  ManualTransport transport_;
  Executor executor_{1};
  std::shared_ptr<EchoHandler::Control> control_ = std::make_shared<EchoHandler::Control>();
  const StreamCall::Environment environment_ = {
      budget_.get(), &timers_, &posted_, absl::Seconds(60), {}, {}, kMinUploadRate};
  std::shared_ptr<StreamCall> call_ = MakeCall(environment_, control_, &executor_);
  bool done_ = false;
};

TEST_F(StreamCallTest, AnswersAndEndsWellAfterTheLastWrite) {
  control_->allow.Set();
  SendTensor();
  ASSERT_TRUE(Eventually([&] { return transport_.writing(); }));
  transport_.HalfClose(*call_);
  EXPECT_FALSE(transport_.status());
  EXPECT_EQ(PayloadReserved(), 4096) << "until the peer has it";
  transport_.TakeWrite(*call_);
  ASSERT_TRUE(Finished());
  EXPECT_TRUE(transport_.status()->ok()) << *transport_.status();
  EXPECT_EQ(budget_->reserved(), 0);
}

TEST_F(StreamCallTest, TheLastMessageAndTheEndGoTogether) {
  SendTensor();
  transport_.HalfClose(*call_);
  control_->allow.Set();
  ASSERT_TRUE(Finished());
  EXPECT_TRUE(transport_.status()->ok()) << *transport_.status();
  EXPECT_EQ(transport_.writes(), 1);
  EXPECT_EQ(PayloadReserved(), 4096) << "until the peer has it";
  End();
  EXPECT_EQ(budget_->reserved(), 0);
}

TEST_F(StreamCallTest, SmallAnswersThatComeSoonGoInOneMessage) {
  MaskMessage message;
  message.Open("s");
  for (uint32_t i = 0; i < 10; ++i) message.Tensor(Header(i, "a", {10}), std::string(40, 'x'));
  transport_.Send(*call_, message);
  control_->allow.Set();
  ASSERT_TRUE(Eventually([&] { return transport_.writing(); }));
  transport_.TakeWrite(*call_);
  transport_.HalfClose(*call_);
  ASSERT_TRUE(Finished());
  EXPECT_EQ(transport_.writes(), 1);
}

TEST_F(StreamCallTest, ReadsOnlyWhenThereIsMemoryForWhatComes) {
  SendTensor();
  control_->computing.Wait();
  SendTensor(1);
  EXPECT_FALSE(transport_.reading());
  EXPECT_EQ(budget_->waiting(), 1);
  control_->allow.Set();
  ASSERT_TRUE(Eventually([&] { return transport_.writing(); }));
  transport_.TakeWrite(*call_);
  EXPECT_TRUE(Eventually([&] { return transport_.reading(); }));
  EXPECT_EQ(budget_->waiting(), 0);
}

TEST_F(StreamCallTest, CancellingWhileItReadsGivesMemoryBack) {
  transport_.Send(*call_, MaskMessage().Open("s").Add(Header(0, "a", {1024})).Chunk(0, 0, "x"));
  EXPECT_EQ(PayloadReserved(), 4096);
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
  control_->computing.Wait();
  call_->OnCancel();
  ASSERT_TRUE(Finished());
  control_->allow.Set();
  EXPECT_TRUE(Eventually([&] { return budget_->reserved() == 0; }));
  EXPECT_FALSE(transport_.writing());
}

TEST_F(StreamCallTest, CancellingWhileItWritesEndsAfterTheWrite) {
  control_->allow.Set();
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
              HasSubstr("in 1m; it must send at least 10 per second"));
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
  control_->allow.Set();
  for (uint32_t i = 0; i < 5; ++i) {
    SendTensor(i);
    ASSERT_TRUE(Eventually([&] { return transport_.writing(); }));
    transport_.TakeWrite(*call_);
    ASSERT_TRUE(Eventually([&] { return PayloadReserved() == 0; }));
    clock_.Advance(absl::Seconds(59));
    FlushTimers();
  }
  EXPECT_FALSE(transport_.status());
}

TEST_F(StreamCallTest, APeerThatDoesNotReadIsTornDown) {
  control_->allow.Set();
  SendTensor();
  ASSERT_TRUE(Eventually([&] { return transport_.writing(); }));
  clock_.Advance(absl::Seconds(60));
  FlushTimers();
  EXPECT_TRUE(transport_.cancelled()) << "a status would not get through";
}

TEST_F(StreamCallTest, ComputingAndWaitingForMemoryAreNotTheFaultOfThePeer) {
  SendTensor();
  control_->computing.Wait();
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

TEST_F(StreamCallTest, ACallThatIsCancelledWhileItGoesOnWithGrantedMemoryEndsAfterThat) {
  auto others = budget_->TryReserve(5000);
  Latch go_on;
  control_->during_hook = [&] { go_on.Wait(); };
  SendTensor();
  EXPECT_EQ(budget_->waiting(), 1);
  others.reset();
  control_->in_hook.Wait();  // on the executor, with nothing of the transport's under way
  call_->OnCancel();
  ASSERT_TRUE(Finished());
  End();
  EXPECT_FALSE(control_->ended.IsSet()) << "the handler is in use";
  go_on.Set();
  control_->ended.Wait();
  EXPECT_TRUE(GivesEverythingBack());
}

TEST_F(StreamCallTest, ACallThatIsCancelledWhileItsTaskRunsEndsAfterThat) {
  SendTensor();
  control_->computing.Wait();
  call_->OnCancel();
  ASSERT_TRUE(Finished());
  End();
  EXPECT_FALSE(control_->ended.IsSet()) << "the handler is in use";
  control_->allow.Set();
  control_->ended.Wait();
  EXPECT_TRUE(GivesEverythingBack());
}

TEST_F(StreamCallTest, ACallWaitsForItsSessionWhicheverMessageOpensIt) {
  StreamHandler::Ready ready;
  control_->load = [&](StreamHandler::Ready loaded) { ready = std::move(loaded); };
  control_->allow.Set();
  transport_.Send(*call_, MaskMessage());
  EXPECT_EQ(ready, nullptr);
  SendTensor();
  ASSERT_NE(ready, nullptr);
  EXPECT_FALSE(transport_.reading());
  EXPECT_EQ(budget_->reserved(), 0) << "nothing is made of the message before";
  ready(absl::OkStatus());
  ASSERT_TRUE(Eventually([&] { return transport_.writing(); }));
}

TEST_F(StreamCallTest, ASessionThatCannotBeLoadedFailsTheCall) {
  control_->load = [&](const StreamHandler::Ready& ready) {
    ready(absl::DataLossError("damaged"));
  };
  SendTensor();
  ASSERT_TRUE(Finished());
  EXPECT_EQ(transport_.status()->code(), absl::StatusCode::kDataLoss);
}

TEST_F(StreamCallTest, ASessionThatIsLoadedAfterTheEndTouchesNothing) {
  StreamHandler::Ready ready;
  control_->load = [&](StreamHandler::Ready loaded) { ready = std::move(loaded); };
  SendTensor();
  call_->OnCancel();
  ASSERT_TRUE(Finished());
  End();
  control_->ended.Wait();
  ready(absl::OkStatus());
  EXPECT_FALSE(control_->in_hook.IsSet());
  EXPECT_EQ(budget_->reserved(), 0);
}

TEST_F(StreamCallTest, NothingIsReadWhileThePeerDoesNotTakeItsReplies) {
  StreamCall::Environment environment = environment_;
  environment.limits.replies = 2;
  ManualTransport transport;
  const auto call = MakeCall(environment, control_, &executor_);
  control_->allow.Set();
  call->Start(&transport);
  // One is being written, and two may wait; at most one more was asked for before they did.
  uint32_t sent = 0;
  for (; sent < 10 && transport.reading(); ++sent) {
    MaskMessage message;
    if (sent == 0) message.Open("s");
    transport.Send(*call, message.Tensor(Header(sent, "a", {4}), std::string(16, 'x')));
    FlushTasks();
  }
  EXPECT_GE(sent, 4u);
  EXPECT_LE(sent, 5u);
  transport.TakeWrite(*call);
  EXPECT_TRUE(transport.reading());
  call->OnDone();
}

TEST_F(StreamCallTest, APeerThatSendsAndDoesNotReadIsTornDown) {
  control_->allow.Set();
  SendTensor();
  ASSERT_TRUE(Eventually([&] { return transport_.writing(); }));
  for (int i = 0; i < 2; ++i) {
    clock_.Advance(absl::Seconds(30));
    FlushTimers();
    EXPECT_EQ(transport_.cancelled(), i == 1);
    transport_.Send(*call_, MaskMessage());
  }
  EXPECT_TRUE(transport_.cancelled());
}

TEST_F(StreamCallTest, ATenantAboveItsQuotaIsRefusedAtOnceInsteadOfWaiting) {
  StreamCall::Environment environment = environment_;
  environment.memory_quota = {std::make_shared<MemoryAccount>(), 7000};
  ManualTransport transport;
  auto control = std::make_shared<EchoHandler::Control>();
  const auto call = MakeCall(environment, control, &executor_);
  call->Start(&transport);
  auto others = budget_->TryReserve(4000);
  ASSERT_TRUE(environment.memory_quota.account->Add(3000, std::nullopt).ok());
  transport.Send(*call,
                 MaskMessage().Open("s").Tensor(Header(0, "a", {1024}), std::string(4096, 'x')));
  ASSERT_TRUE(transport.status());
  EXPECT_THAT(std::string(transport.status()->message()), HasSubstr("quota of memory"));
  EXPECT_EQ(budget_->waiting(), 0);
  EXPECT_EQ(environment.memory_quota.account->bytes(), 3000);
  call->OnDone();
  control->ended.Wait();
}

TEST_F(StreamCallTest, NothingIsTouchedAfterTheTransportIsGone) {
  SendTensor();
  control_->computing.Wait();
  call_->OnCancel();
  ASSERT_TRUE(Finished());
  End();
  control_->allow.Set();
  clock_.Advance(absl::Seconds(600));
  FlushTimers();
  EXPECT_TRUE(Eventually([&] { return budget_->reserved() == 0; }));
}

// Completes what a call starts, on a thread of its own, as gRPC does: its last word comes when
// nothing is under way.
class RacingTransport : public StreamTransport {
 public:
  explicit RacingTransport(std::vector<MaskMessage> messages) : messages_(std::move(messages)) {}

  void StartRead(grpc::ByteBuffer* message) override {
    MutexLock lock(&mutex_);
    read_ = message;
    changed_.NotifyAll();
  }
  void StartWrite(const grpc::ByteBuffer*) override {
    MutexLock lock(&mutex_);
    writing_ = true;
    changed_.NotifyAll();
  }
  void Finish(const absl::Status&) override {
    MutexLock lock(&mutex_);
    EXPECT_FALSE(finished_);
    finished_ = true;
    changed_.NotifyAll();
  }
  void WriteAndFinish(const grpc::ByteBuffer*, const absl::Status& status) override {
    Finish(status);
  }
  void Cancel() override {}
  bool cancelled() const override { return false; }

  // Until the call is over.
  void Run(StreamCall& call) {
    size_t next = 0;
    while (true) {
      grpc::ByteBuffer* read = nullptr;
      bool written = false;
      bool over = false;
      {
        MutexLock lock(&mutex_);
        while (read_ == nullptr && !writing_ && !finished_) changed_.Wait(&mutex_);
        read = std::exchange(read_, nullptr);
        over = finished_;
        if (read == nullptr) written = std::exchange(writing_, false);
      }
      if (read != nullptr) {
        const bool more = !over && next < messages_.size();
        if (more) *read = messages_[next++].bytes();
        call.OnReadDone(more);
      } else if (written) {
        call.OnWriteDone(true);
      } else {
        return call.OnDone();
      }
    }
  }

 private:
  const std::vector<MaskMessage> messages_;
  Mutex mutex_;
  CondVar changed_;
  grpc::ByteBuffer* read_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
};

// The same events as in the tests above, on as many threads as there are in a server, at moments
// that the scheduler chooses.
TEST(StreamCallThreadsTest, WhateverComesAtOnceEndsACallOnceAndGivesItsMemoryBack) {
  FakeClock clock;
  TimerThread timers(&clock);
  Executor executor(3);
  const auto budget = MemoryBudget::Create(
      10000, [&](std::function<void()> granted) { executor.Schedule(std::move(granted)); });
  for (int round = 0; round < 200; ++round) {
    auto control = std::make_shared<EchoHandler::Control>();
    control->allow.Set();
    control->load = [&](StreamHandler::Ready ready) {
      executor.Schedule([ready = std::move(ready)] { ready(absl::OkStatus()); });
    };
    auto call = MakeCall({budget.get(), &timers, &executor, absl::Seconds(60)}, control, &executor);
    std::vector<MaskMessage> messages(6);
    messages[1].Open("s");
    for (uint32_t i = 2; i < 6; ++i) {
      messages[i].Tensor(Header(i, "a", {1024}), std::string(4096, 'x'));
    }
    RacingTransport transport(std::move(messages));
    std::optional<Reservation> others = budget->TryReserve(9000);
    call->Start(&transport);
    std::thread peer([&] { transport.Run(*call); });
    std::thread memory([&] {
      if (round % 3 == 0) clock.Advance(absl::Seconds(1));
      others.reset();
    });
    std::thread cancel([&] {
      if (round % 4 == 0) return;
      for (int i = 0; i < round % 50; ++i) std::this_thread::yield();
      call->OnCancel();
    });
    peer.join();
    memory.join();
    cancel.join();
    control->ended.Wait();
    EXPECT_EQ(control->faults, 0);
    call.reset();
    ASSERT_TRUE(Eventually([&] { return budget->reserved() == 0; })) << "round " << round;
  }
  timers.Stop();
}

}  // namespace
}  // namespace nni_compression::server
