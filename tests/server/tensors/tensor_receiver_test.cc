#include "server/tensors/tensor_receiver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "server/base/errors.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/wire_messages.h"

namespace nni_compression::server {
namespace {

namespace v1 = ::nni::compression::v1;

using ::nni_compression::testing::FakeClock;
using ::nni_compression::testing::Header;
using ::nni_compression::testing::MaskMessage;
using ::testing::HasSubstr;
using Progress = TensorReceiver::Progress;

std::string ToString(const compression::Buffer& bytes) {
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

const std::string kSixteen = "0123456789abcdef";

// Keeps everything; has the bytes of layers called "present"; refuses layers called "refused".
class RecordingSink : public TensorSink {
 public:
  absl::StatusOr<bool> OnOpen(wire::MessageReader& reader) override {
    v1::CalcMaskRequest::Open open;
    if (absl::Status status = reader.Parse(&open); !status.ok()) return status;
    session = open.session_id();
    return ready;
  }
  absl::StatusOr<Admission> OnHeader(const v1::TensorHeader& header, Reservation&) override {
    headers.push_back(header.layer());
    last_header = header;
    Admission admission{header.layer() != "refused", extra_bytes};
    if (header.layer() == "present") {
      admission.present = compression::Buffer::Allocate(static_cast<int64_t>(kSixteen.size()));
      kSixteen.copy(reinterpret_cast<char*>(admission.present->data()), kSixteen.size());
    }
    return admission;
  }
  absl::Status OnTensor(ReceivedTensor tensor) override {
    tensors.push_back(std::move(tensor));
    return absl::OkStatus();
  }
  bool HoldsTensors() const override { return holds; }

  std::string session;
  std::vector<std::string> headers;
  v1::TensorHeader last_header;
  std::vector<ReceivedTensor> tensors;
  int64_t extra_bytes = 0;
  bool ready = true;
  bool holds = false;
};

class TensorReceiverTest : public ::testing::Test {
 protected:
  absl::StatusOr<Progress> Receive(const MaskMessage& message) {
    return receiver_.Receive(message.bytes());
  }

  // What a message answers when one has come that opened the call and announced a tensor of four
  // floats with index 0.
  absl::Status AfterHeader(const MaskMessage& message) {
    EXPECT_TRUE(Receive(MaskMessage().Open("s").Add(Header(0, "a", {4}))).ok());
    return Receive(message).status();
  }

  void ExpectInvalid(const absl::Status& status, const std::string& text) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  }

  const int64_t kBookkeeping = BookkeepingBytes(Header(0, "a", {4}));
  static constexpr int64_t kPage = 256;  // of indices; stays with the call

  std::deque<std::function<void()>> granted_;
  std::shared_ptr<MemoryBudget> budget_ = MemoryBudget::Create(
      1000, [this](std::function<void()> function) { granted_.push_back(std::move(function)); });
  RecordingSink sink_;
  TensorReceiver receiver_{&sink_, budget_.get()};
};

TEST_F(TensorReceiverTest, AssemblesATensorFromChunksOfManyMessages) {
  ASSERT_TRUE(Receive(MaskMessage().Open("s")).ok());
  EXPECT_EQ(budget_->reserved(), 0);
  ASSERT_TRUE(Receive(MaskMessage().Add(Header(0, "a", {4}))).ok());
  EXPECT_EQ(budget_->reserved(), kBookkeeping + kPage) << "a header reserves itself";
  ASSERT_TRUE(Receive(MaskMessage().Chunk(0, 0, kSixteen.substr(0, 5))).ok());
  EXPECT_EQ(budget_->reserved(), kBookkeeping + kPage + 16);
  ASSERT_TRUE(Receive(MaskMessage().Chunk(0, 5, kSixteen.substr(5))).ok());
  ASSERT_TRUE(sink_.tensors.empty());
  ASSERT_TRUE(Receive(MaskMessage().Commit(0, 16)).ok());
  EXPECT_EQ(sink_.session, "s");
  ASSERT_EQ(sink_.tensors.size(), 1u);
  EXPECT_EQ(ToString(sink_.tensors[0].bytes), kSixteen);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(sink_.tensors[0].bytes.data()) % 64, 0u);
  EXPECT_TRUE(receiver_.Finish().ok());
  EXPECT_EQ(sink_.tensors[0].bookkeeping.bytes(), kBookkeeping) << "for the answer";
  sink_.tensors.clear();
  EXPECT_EQ(budget_->reserved(), kPage);
  receiver_.Reset();
  EXPECT_EQ(budget_->reserved(), 0);
}

TEST_F(TensorReceiverTest, ATensorThatIsHereAlreadyTakesItsCommitAndMemoryForItsResultOnly) {
  sink_.extra_bytes = 8;
  const v1::TensorHeader header = Header(0, "present", {4});
  ASSERT_TRUE(Receive(MaskMessage().Open("s").Add(header)).ok());
  EXPECT_EQ(sink_.tensors.size(), 0u);
  ASSERT_TRUE(Receive(MaskMessage().Commit(0, 16)).ok());
  ASSERT_EQ(sink_.tensors.size(), 1u);
  EXPECT_EQ(ToString(sink_.tensors[0].bytes), kSixteen);
  EXPECT_EQ(sink_.tensors[0].memory.bytes(), sink_.extra_bytes);
  EXPECT_TRUE(receiver_.Finish().ok());
}

TEST_F(TensorReceiverTest, ATensorThatIsHereAlreadyWaitsForTheMemoryOfItsResult) {
  sink_.extra_bytes = 8;
  std::optional<Reservation> all = budget_->TryReserve(1000);
  const auto waits = Receive(MaskMessage()
                                 .Open("s")
                                 .Add(Header(0, "present", {4}))
                                 .Add(Header(1, "present", {4}))
                                 .Commit(0, 16)
                                 .Commit(1, 16));
  ASSERT_EQ(*waits, Progress::kNeedsMemory);
  EXPECT_EQ(receiver_.bytes_needed(), sink_.extra_bytes);
  all.reset();
  const auto resumed = receiver_.Resume(*budget_->TryReserve(sink_.extra_bytes));
  ASSERT_TRUE(resumed.ok());
  EXPECT_EQ(*resumed, Progress::kDone);
  EXPECT_EQ(sink_.tensors.size(), 2u);
}

TEST_F(TensorReceiverTest, ATensorThatIsHereAlreadyHasNoChunks) {
  ExpectInvalid(
      Receive(MaskMessage().Open("s").Tensor(Header(0, "present", {4}), kSixteen)).status(),
      "on the server already");
}

TEST_F(TensorReceiverTest, SharedMemoryThatTheCallDoesNotFindIsRefused) {
  v1::TensorHeader header = Header(0, "a", {4});
  header.mutable_shared_memory()->set_region("somewhere, 16 b.");
  ExpectInvalid(Receive(MaskMessage().Open("s").Add(header)).status(), "shared_memory");
}

TEST_F(TensorReceiverTest, HeadersKeepNothingThatIsNotCounted) {
  v1::TensorHeader header = Header(0, "a", {4});
  header.mutable_result_place()->set_region("17 bytes, not 16.");
  ExpectInvalid(Receive(MaskMessage().Open("s").Add(header)).status(), "region of tensor 0");

  header = Header(0, "a", {4});
  for (int i = 0; i < 64; ++i) header.add_shape(1);
  TensorReceiver receiver(&sink_, budget_.get());
  ExpectInvalid(receiver.Receive(MaskMessage().Open("s").Add(header).bytes()).status(),
                "shape of tensor 0 has 65 dimensions");

  header = Header(0, "refused", {4});
  header.mutable_shared_memory()->set_region("somewhere, 16 b.");
  for (google::protobuf::Message* message :
       std::initializer_list<google::protobuf::Message*>{&header, header.mutable_shared_memory()}) {
    message->GetReflection()->MutableUnknownFields(message)->AddLengthDelimited(
        1000, std::string(1000, 'x'));
  }
  TensorReceiver another(&sink_, budget_.get());
  ASSERT_TRUE(another.Receive(MaskMessage().Open("s").Add(header).bytes()).ok());
  EXPECT_LT(sink_.last_header.ByteSizeLong(), 100u);
}

TEST_F(TensorReceiverTest, OneMessageMayHoldEverything) {
  MaskMessage message;
  message.Open("s").Tensor(Header(7, "a", {4}), kSixteen).Tensor(Header(2, "b", {1}), "wxyz");
  ASSERT_TRUE(Receive(message).ok());
  ASSERT_EQ(sink_.tensors.size(), 2u);
  EXPECT_EQ(ToString(sink_.tensors[1].bytes), "wxyz");
}

TEST_F(TensorReceiverTest, FieldsOfAMessageTakeEffectInTheirOrderNotTheWires) {
  const grpc::Slice once(MaskMessage().Open("s").proto().SerializeAsString() +
                         MaskMessage().Commit(0, 16).proto().SerializeAsString() +
                         MaskMessage().Chunk(0, 0, kSixteen).proto().SerializeAsString() +
                         MaskMessage().Add(Header(0, "a", {4})).proto().SerializeAsString());
  ASSERT_TRUE(receiver_.Receive(grpc::ByteBuffer(&once, 1)).ok());
  EXPECT_EQ(sink_.tensors.size(), 1u);
}

TEST_F(TensorReceiverTest, OpenComesFirstAndOnce) {
  ExpectInvalid(Receive(MaskMessage().Add(Header(0, "a", {4}))).status(),
                "the first field must be open");
  ExpectInvalid(receiver_.Finish(), "open is missing");
  ASSERT_TRUE(Receive(MaskMessage().Open("s")).ok());
  ExpectInvalid(Receive(MaskMessage().Open("s")).status(), "duplicate open");
}

TEST_F(TensorReceiverTest, AChunkBeforeItsHeaderIsRefused) {
  ExpectInvalid(AfterHeader(MaskMessage().Chunk(1, 0, "x")), "tensor 1 has no header");
}

TEST_F(TensorReceiverTest, AChunkThatLeavesAGapIsRefused) {
  ExpectInvalid(AfterHeader(MaskMessage().Chunk(0, 1, "x")), "leaves a gap; it must be 0");
}

TEST_F(TensorReceiverTest, AChunkThatOverlapsIsRefused) {
  ExpectInvalid(AfterHeader(MaskMessage().Chunk(0, 0, "xyz").Chunk(0, 2, "z")),
                "overlaps; it must be 3");
}

TEST_F(TensorReceiverTest, AChunkPastTheEndIsRefused) {
  ExpectInvalid(AfterHeader(MaskMessage().Chunk(0, 0, kSixteen + "x")), "runs past the end");
}

TEST_F(TensorReceiverTest, AnEmptyChunkIsRefused) {
  ExpectInvalid(AfterHeader(MaskMessage().Chunk(0, 0, "")), "is empty");
  EXPECT_EQ(budget_->reserved(), kBookkeeping + kPage);
}

TEST_F(TensorReceiverTest, ACommitWithAnotherTotalIsRefused) {
  ExpectInvalid(AfterHeader(MaskMessage().Chunk(0, 0, kSixteen).Commit(0, 15)),
                "is 15; its header says 16");
}

TEST_F(TensorReceiverTest, ACommitBeforeAllBytesIsRefused) {
  ExpectInvalid(AfterHeader(MaskMessage().Chunk(0, 0, "x").Commit(0, 16)), "after 1 of 16 bytes");
}

TEST_F(TensorReceiverTest, ASecondCommitIsRefused) {
  ExpectInvalid(AfterHeader(MaskMessage().Chunk(0, 0, kSixteen).Commit(0, 16).Commit(0, 16)),
                "committed twice");
}

TEST_F(TensorReceiverTest, HalfClosingWithoutACommitIsRefused) {
  EXPECT_TRUE(AfterHeader(MaskMessage().Chunk(0, 0, kSixteen)).ok());
  ExpectInvalid(receiver_.Finish(),
                "tensor 0 ('a') was not committed; 16 of 16 bytes were received");
}

TEST_F(TensorReceiverTest, AnIndexIsUsedOnceInACall) {
  EXPECT_TRUE(AfterHeader(MaskMessage().Chunk(0, 0, kSixteen).Commit(0, 16)).ok());
  ExpectInvalid(Receive(MaskMessage().Add(Header(0, "b", {4}))).status(), "was used before");
  ExpectInvalid(Receive(MaskMessage().Add(Header(1 << 20, "b", {4}))).status(), "below 1048576");
}

TEST_F(TensorReceiverTest, AHighIndexTakesNoMoreThanALowOne) {
  ASSERT_TRUE(Receive(MaskMessage().Open("s").Add(Header((1 << 20) - 1, "a", {4}))).ok());
  EXPECT_EQ(budget_->reserved(), kBookkeeping + kPage);
  ExpectInvalid(Receive(MaskMessage().Add(Header((1 << 20) - 1, "a", {4}))).status(),
                "was used before");
  EXPECT_TRUE(Receive(MaskMessage().Add(Header((1 << 20) - 2, "a", {4}))).ok());
  EXPECT_EQ(budget_->reserved(), 2 * kBookkeeping + kPage) << "they lie side by side";
}

TEST_F(TensorReceiverTest, ManyCommitsWithoutHeadersAreRefused) {
  MaskMessage message;
  message.Open("s");
  for (uint32_t i = 0; i < 100000; ++i) message.Commit(i, 16);
  ExpectInvalid(Receive(message).status(), "has no header");
}

TEST_F(TensorReceiverTest, TheRestOfAMessageWaitsForTheSession) {
  sink_.ready = false;
  const auto waits = Receive(MaskMessage().Open("s").Tensor(Header(0, "a", {4}), kSixteen));
  ASSERT_EQ(*waits, Progress::kNeedsSession);
  EXPECT_TRUE(sink_.headers.empty());
  EXPECT_EQ(budget_->reserved(), 0);
  EXPECT_EQ(*receiver_.Ready(), Progress::kDone);
  EXPECT_EQ(sink_.tensors.size(), 1u);
}

TEST_F(TensorReceiverTest, AnEmptyMessageIsNoOpen) {
  sink_.ready = false;
  EXPECT_EQ(*Receive(MaskMessage()), Progress::kDone);
  EXPECT_EQ(*Receive(MaskMessage().Open("s")), Progress::kNeedsSession);
}

// 10,000 tensors that are here already wait for memory one after the other. Where each grant
// started at the first commit again, that would be 50 million steps.
TEST_F(TensorReceiverTest, WhatAGrantWasFoundForIsNotLookedAtAgain) {
  const auto budget = MemoryBudget::Create(64 << 20, nullptr);
  TensorReceiver receiver(&sink_, budget.get());
  sink_.extra_bytes = 32 << 20;
  constexpr uint32_t kTensors = 10000;
  MaskMessage message;
  message.Open("s");
  for (uint32_t i = 0; i < kTensors; ++i) message.Add(Header(i, "present", {4})).Commit(i, 16);
  std::optional<Reservation> all = budget->TryReserve(sink_.extra_bytes);
  auto progress = receiver.Receive(message.bytes());
  for (uint32_t i = 0; i < kTensors; ++i) {
    ASSERT_EQ(*progress, Progress::kNeedsMemory) << i;
    ASSERT_EQ(sink_.tensors.size(), i);
    progress = receiver.Resume(*std::exchange(all, std::nullopt));
    all = std::move(sink_.tensors.back().memory);
  }
  EXPECT_EQ(*progress, Progress::kDone);
}

TEST_F(TensorReceiverTest, NamesAndDigestsHaveALegalLength) {
  ASSERT_TRUE(Receive(MaskMessage().Open("s")).ok());
  ExpectInvalid(Receive(MaskMessage().Add(Header(0, std::string(100 << 10, 'n'), {4}))).status(),
                "layer of tensor 0 has 102400 bytes; it must have 1 to 1024");
  ExpectInvalid(Receive(MaskMessage().Add(Header(1, "", {4}))).status(), "has 0 bytes");
  v1::TensorHeader header = Header(2, "a", {4});
  header.set_digest("short");
  ExpectInvalid(Receive(MaskMessage().Add(header)).status(), "has 5 bytes; it must have 0 or 32");
}

// The first messages of a call with so many headers.
absl::Status SendHeaders(TensorReceiver& receiver, uint32_t headers) {
  absl::Status status = receiver.Receive(MaskMessage().Open("s").bytes()).status();
  for (uint32_t i = 0; status.ok() && i < headers; i += 1000) {
    MaskMessage message;
    for (uint32_t j = i; j < i + 1000; ++j) message.Add(Header(j, "a", {4}));
    status = receiver.Receive(message.bytes()).status();
  }
  return status;
}

TEST_F(TensorReceiverTest, HeadersThatRunAheadAreCounted) {
  const absl::Status status = SendHeaders(receiver_, 100000);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(RetryAfter(status));
  const int64_t open = static_cast<int64_t>(sink_.headers.size());
  EXPECT_GT(open, 900) << "a little of them is there beside any budget";
  EXPECT_LT(open, 1100);
  EXPECT_GT(budget_->reserved(), open * kBookkeeping);
}

TEST_F(TensorReceiverTest, HeadersThatRunAheadAreBounded) {
  const auto budget = MemoryBudget::Create(1 << 30, nullptr);
  TensorReceiver receiver(&sink_, budget.get());
  const absl::Status status = SendHeaders(receiver, 100000);
  ExpectInvalid(status, "too many tensors are not committed");
  EXPECT_EQ(sink_.headers.size(), 65536u);
}

TEST_F(TensorReceiverTest, ATensorAboveTheBudgetIsRefusedAtItsHeader) {
  sink_.extra_bytes = 990;
  const absl::Status status = Receive(MaskMessage().Open("s").Add(Header(0, "a", {4}))).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(RetryAfter(status)) << "waiting does not help";
}

TEST_F(TensorReceiverTest, WaitsForMemoryInTheMiddleOfAMessage) {
  auto others = budget_->TryReserve(990);
  const auto progress = Receive(MaskMessage()
                                    .Open("s")
                                    .Tensor(Header(0, "a", {4}), kSixteen)
                                    .Tensor(Header(1, "b", {1}), "wxyz"));
  ASSERT_EQ(*progress, Progress::kNeedsMemory);
  EXPECT_EQ(receiver_.bytes_needed(), 16);
  EXPECT_TRUE(sink_.tensors.empty());
  others.reset();
  EXPECT_EQ(*receiver_.Resume(*budget_->TryReserve(16)), Progress::kDone);
  ASSERT_EQ(sink_.tensors.size(), 2u);
  EXPECT_EQ(ToString(sink_.tensors[0].bytes), kSixteen);
  EXPECT_EQ(ToString(sink_.tensors[1].bytes), "wxyz");
}

TEST_F(TensorReceiverTest, DoesNotWaitWhileItHoldsAnIncompleteTensor) {
  auto others = budget_->TryReserve(980);
  ASSERT_TRUE(Receive(MaskMessage().Open("s").Add(Header(0, "a", {4})).Chunk(0, 0, "x")).ok());
  const absl::Status status =
      Receive(MaskMessage().Add(Header(1, "b", {4})).Chunk(1, 0, "x")).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(RetryAfter(status)) << "two such calls would wait for one another";
}

TEST_F(TensorReceiverTest, DoesNotWaitForACallThatKeepsItsTensors) {
  auto others = budget_->TryReserve(990);
  sink_.holds = true;
  EXPECT_EQ(Receive(MaskMessage().Open("s").Tensor(Header(0, "a", {4}), kSixteen)).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST_F(TensorReceiverTest, ARefusedTensorIsThrownAwayAndStillChecked) {
  ASSERT_TRUE(Receive(MaskMessage().Open("s").Add(Header(0, "refused", {1 << 20}))).ok());
  ASSERT_TRUE(Receive(MaskMessage().Chunk(0, 0, std::string(1 << 20, 'x'))).ok());
  EXPECT_LT(budget_->reserved(), 4096) << "none of the payload";
  EXPECT_TRUE(receiver_.Finish().ok()) << "its sender may stop when it has the answer";
  ExpectInvalid(Receive(MaskMessage().Chunk(0, 5, "x")).status(), "overlaps");
}

TEST_F(TensorReceiverTest, ResetGivesAllMemoryBack) {
  ASSERT_TRUE(AfterHeader(MaskMessage().Chunk(0, 0, "x")).ok());
  EXPECT_EQ(budget_->reserved(), kBookkeeping + kPage + 16);
  receiver_.Reset();
  EXPECT_EQ(budget_->reserved(), 0);
}

TEST_F(TensorReceiverTest, ATensorIsCountedAsAnUploadWhenItBegins) {
  const FakeClock clock;
  const auto meter = std::make_shared<UploadMeter>(&clock);
  const auto receive = [&](TensorReceiver& receiver, const MaskMessage& message) {
    return receiver.Receive(message.bytes()).status();
  };
  TensorReceiver first(&sink_, budget_.get(), {}, {meter, 2});
  EXPECT_TRUE(
      receive(first, MaskMessage().Open("s").Add(Header(0, "present", {4})).Commit(0, 16)).ok())
      << "one that does not come is no upload";
  for (uint32_t i = 1; i < 4; ++i) {
    EXPECT_TRUE(
        receive(first, MaskMessage().Add(Header(i, "a", {4})).Chunk(i, 0, kSixteen.substr(0, 8)))
            .ok());
  }
  for (uint32_t i = 1; i < 4; ++i) {
    EXPECT_TRUE(receive(first, MaskMessage().Chunk(i, 8, kSixteen.substr(8)).Commit(i, 16)).ok());
  }
  TensorReceiver second(&sink_, budget_.get(), {}, {meter, 2});
  EXPECT_TRUE(receive(second, MaskMessage().Open("s").Add(Header(0, "a", {4}))).ok());
  const absl::Status refused = receive(second, MaskMessage().Chunk(0, 0, kSixteen));
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(RetryAfter(refused), absl::Seconds(1)) << "three have come, and two are allowed";
}

TEST_F(TensorReceiverTest, AMillionEmptyChunksAreRefusedAtTheFirst) {
  std::string wire = MaskMessage().Open("s").Add(Header(0, "a", {4})).proto().SerializeAsString();
  const std::string empty = MaskMessage().Chunk(0, 0, "").proto().SerializeAsString();
  for (int i = 0; i < 1000000; ++i) wire += empty;
  ASSERT_LT(wire.size(), static_cast<size_t>(wire::kMaxMessageBytes));
  const grpc::Slice slice(wire);
  ExpectInvalid(receiver_.Receive(grpc::ByteBuffer(&slice, 1)).status(), "is empty");
}

TEST_F(TensorReceiverTest, GarbageIsNoMessage) {
  for (const std::string& garbage : {std::string("\xff\xff\xff"), std::string("\x0a\x7f"),
                                     std::string("\x1a\x02\x08"), std::string(3, '\0')}) {
    const grpc::Slice slice(garbage);
    TensorReceiver receiver(&sink_, budget_.get());
    EXPECT_EQ(receiver.Receive(grpc::ByteBuffer(&slice, 1)).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(TensorReceiverTest, TheChecksumIsZlibs) {
  const auto crc = static_cast<uint32_t>(
      crc32(0, reinterpret_cast<const Bytef*>(kSixteen.data()), kSixteen.size()));
  MaskMessage message;
  message.Open("s").Add(Header(0, "a", {4})).Chunk(0, 0, kSixteen).Commit(0, 16, crc);
  message.Add(Header(1, "b", {4})).Chunk(1, 0, kSixteen).Commit(1, 16, crc ^ 1);
  ASSERT_TRUE(Receive(message).ok());
  EXPECT_TRUE(VerifyChecksum(sink_.tensors[0]).ok());
  EXPECT_EQ(VerifyChecksum(sink_.tensors[1]).code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace nni_compression::server
