// What hostile, broken and slow peers get, and that nobody else notices.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/testing/test_server.h"

namespace nni_compression::testing {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kBudget = 64 << 20;

class BadStreamsTest : public ::testing::Test {
 protected:
  BadStreamsTest() : server_(Options()) {
    id_ = Bind(stub(), BindRequest("level", {{"sparsity", 0.5}}, {{"a", {4}}, {"b", {4}}}));
    before_ = server_.server().memory_reserved();
  }

  // A bad call leaves everything as it was.
  ~BadStreamsTest() override {
    EXPECT_TRUE(server_.MemoryReturnsTo(before_)) << server_.server().memory_reserved();
    v1::GetSessionResponse session;
    EXPECT_TRUE(GetSession(stub(), id_, &session).ok());
    if (untouched_) {
      EXPECT_EQ(session.session().achieved_sparsity(), 0);
    }
  }

  static server::ServerOptions Options() {
    server::ServerOptions options;
    options.memory_budget = kBudget;
    options.sessions.default_lease = options.sessions.max_lease;  // longer than any test waits
    options.sessions.report_retention = absl::ZeroDuration();     // nothing is left of closed ones
    options.authenticator = TenantFromMetadata();
    return options;
  }

  v1::CompressionService::Stub& stub() { return server_.stub(); }

  // What a call answers that announces a tensor of 16 bytes and then sends `message`.
  grpc::Status AfterHeader(const MaskMessage& message) {
    MaskStream stream(stub());
    stream.Send(MaskMessage().Open(id_).Add(Header(0, "a", {4})));
    stream.Send(message);
    stream.HalfClose();
    stream.ReadAll();
    return stream.Finish();
  }

  void ExpectInvalid(const grpc::Status& status, const std::string& text) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr(text));
  }

  // A call that has sent half of a tensor, which the server holds.
  std::unique_ptr<MaskStream> HalfSent() {
    auto stream = std::make_unique<MaskStream>(stub());
    stream->Send(MaskMessage().Open(id_).Add(Header(0, "a", {4})).Chunk(0, 0, "x"));
    EXPECT_TRUE(Eventually([&] { return server_.server().memory_reserved() > before_; }));
    return stream;
  }

  TestServer server_;
  std::string id_;
  int64_t before_ = 0;
  bool untouched_ = true;
};

const std::string kSixteen = Bytes({1, 2, 3, 4});

TEST_F(BadStreamsTest, ChunksThatOverlapAreRefused) {
  ExpectInvalid(AfterHeader(MaskMessage().Chunk(0, 0, "abcd").Chunk(0, 3, "d")), "overlaps");
}

TEST_F(BadStreamsTest, ChunksThatLeaveAGapAreRefused) {
  ExpectInvalid(AfterHeader(MaskMessage().Chunk(0, 4, "abcd")), "leaves a gap");
}

TEST_F(BadStreamsTest, ChunksPastTheEndAreRefused) {
  ExpectInvalid(AfterHeader(MaskMessage().Chunk(0, 0, kSixteen + "x")), "runs past the end");
}

TEST_F(BadStreamsTest, ChunksBeforeTheirHeaderAreRefused) {
  ExpectInvalid(AfterHeader(MaskMessage().Chunk(1, 0, "abcd")), "has no header");
}

TEST_F(BadStreamsTest, AHalfClosedStreamWithoutACommitIsRefused) {
  ExpectInvalid(AfterHeader(MaskMessage().Chunk(0, 0, kSixteen)), "was not committed");
}

TEST_F(BadStreamsTest, AWrongTotalIsRefused) {
  ExpectInvalid(AfterHeader(MaskMessage().Chunk(0, 0, kSixteen).Commit(0, 17)), "is 17");
}

TEST_F(BadStreamsTest, AWrongChecksumIsDataLoss) {
  const grpc::Status status = AfterHeader(MaskMessage().Chunk(0, 0, kSixteen).Commit(0, 16, 1));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DATA_LOSS);
}

TEST_F(BadStreamsTest, AMissingOpenIsRefused) {
  v1::CalcMaskResponse response;
  ExpectInvalid(CalcMask(stub(), MaskMessage(), &response), "open is missing");
  ExpectInvalid(CalcMask(stub(), MaskMessage().Add(Header(0, "a", {4})), &response),
                "the first field must be open");
}

TEST_F(BadStreamsTest, LayersThatWereAnsweredStayApplied) {
  untouched_ = false;
  MaskStream stream(stub());
  stream.Send(MaskMessage().Open(id_).Tensor(Header(0, "a", {4}), kSixteen));
  v1::CalcMaskResponse response;
  ASSERT_TRUE(stream.Read(&response));
  stream.Send(MaskMessage().Chunk(7, 0, "x"));
  stream.ReadAll();
  ExpectInvalid(stream.Finish(), "has no header");
  v1::GetSessionResponse session;
  ASSERT_TRUE(GetSession(stub(), id_, &session).ok());
  EXPECT_EQ(session.session().layers(0).achieved_sparsity(), 0.5);
  EXPECT_EQ(session.session().layers(1).achieved_sparsity(), 0);
}

TEST_F(BadStreamsTest, AMillionEmptyChunksAreRefusedAtTheFirst) {
  MaskMessage message;
  for (int i = 0; i < 400000; ++i) message.Chunk(0, 0, "");
  ExpectInvalid(AfterHeader(message), "is empty");
}

TEST_F(BadStreamsTest, NamesWithNulNewlineOr100KibAreAnsweredSafely) {
  v1::CalcMaskResponse response;
  for (const std::string& name : {std::string("a\0b", 3), std::string("a\nb")}) {
    ASSERT_TRUE(
        CalcMask(stub(), MaskMessage().Open(id_).Tensor(Header(0, name, {4}), kSixteen), &response)
            .ok());
    EXPECT_EQ(response.results(0).error().code(), grpc::StatusCode::NOT_FOUND);
    EXPECT_EQ(response.results(0).error().message().find_first_of(std::string("\0\n", 2)),
              std::string::npos);
  }
  ExpectInvalid(
      CalcMask(stub(), MaskMessage().Open(id_).Add(Header(0, std::string(100 << 10, 'n'), {4})),
               &response),
      "102400 bytes");
}

int64_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  int64_t pages = 0, resident = 0;
  file >> pages >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

TEST_F(BadStreamsTest, ATensorThatIsDeclaredAllocatesNothing) {
  const int64_t kHuge = int64_t{1} << 28;  // 1 GiB; what the session may need for masks fits
  const std::string id =
      Bind(stub(), BindRequest("dorefa", {{"quant_bits", 8}}, {{"huge", {kHuge}}}));
  const int64_t reserved = server_.server().memory_reserved();
  const int64_t resident = ResidentBytes();
  v1::QuantizeWeightResponse response;
  const grpc::Status status = RunCall<QuantizeStream>(
      stub(), QuantizeMessage().Open(id).Add(Header(0, "huge", {kHuge})), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(server_.server().memory_reserved(), reserved);
  EXPECT_LT(ResidentBytes() - resident, 64 << 20);
  // Of a tebibyte not even the masks fit.
  grpc::ClientContext context;
  v1::BindModelResponse bound;
  EXPECT_EQ(
      stub()
          .BindModel(&context,
                     BindRequest("level", {{"sparsity", 0.5}}, {{"a", {int64_t{1} << 38}}}), &bound)
          .error_code(),
      grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(CloseSession(stub(), id).ok());
}

TEST_F(BadStreamsTest, HeadersReserveThemselvesAndNothingOfTheirPayloads) {
  const int64_t n = 4 << 20;
  const std::string id = Bind(stub(), BindRequest("dorefa", {}, {{"w", {n}}}));
  const int64_t reserved = server_.server().memory_reserved();
  QuantizeStream stream(stub());
  QuantizeMessage message;
  message.Open(id);
  for (uint32_t i = 0; i < 1000; ++i) message.Add(Header(i, "w", {n}));
  stream.Send(message);
  stream.Send(QuantizeMessage().Add(Header(1000, "unknown", {n})));
  v1::QuantizeWeightResponse response;
  ASSERT_TRUE(stream.Read(&response)) << "so that all headers have been taken";
  EXPECT_GT(server_.server().memory_reserved(), reserved + 1000 * 1024);
  EXPECT_LT(server_.server().memory_reserved(), reserved + 1000 * 2048);
  EXPECT_TRUE(CloseSession(stub(), id).ok());
}

TEST_F(BadStreamsTest, AStalledPeerLosesItsCallAndItsMemory) {
  const auto stream = HalfSent();
  // The server may begin to wait for more only after the clock was moved.
  EXPECT_TRUE(Eventually([&] {
    server_.Advance(absl::Seconds(60));
    return server_.server().memory_reserved() == before_;
  }));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
}

TEST_F(BadStreamsTest, AStalledStreamDoesNotHoldItsSession) {
  const auto stalled = HalfSent();
  untouched_ = false;
  v1::CalcMaskResponse response;
  EXPECT_TRUE(
      CalcMask(stub(), MaskMessage().Open(id_).Tensor(Header(0, "b", {4}), kSixteen), &response)
          .ok());
  EXPECT_EQ(response.results_size(), 1);
  EXPECT_FALSE(response.results(0).has_error());
}

TEST_F(BadStreamsTest, MoreUploadsThanFitWaitForOneAnother) {
  const int64_t n = 5 << 20;  // 20 MiB and as much for the values: one at a time
  const std::string id = Bind(stub(), BindRequest("dorefa", {}, {{"w", {n}}}));
  std::vector<std::thread> uploads;
  for (int i = 0; i < 4; ++i) {
    uploads.emplace_back([&] {
      const auto own = server_.NewStub();
      QuantizeStream stream(*own);
      QuantizeMessage open;
      open.Open(id).Add(Header(0, "w", {n}));
      open.proto().mutable_open()->set_reply(v1::QuantizeWeightRequest::REPLY_VALUES);
      stream.Send(open);
      for (int64_t at = 0; at < n * 4; at += 1 << 20) {
        stream.Send(QuantizeMessage().Chunk(0, at, std::string(1 << 20, 0)));
        EXPECT_LE(server_.server().memory_reserved(), kBudget);
      }
      stream.Send(QuantizeMessage().Commit(0, n * 4));
      stream.HalfClose();
      EXPECT_EQ(PayloadOf(stream.ReadAll(), 0).size(), static_cast<size_t>(n * 4));
      EXPECT_TRUE(stream.Finish().ok());
    });
  }
  for (std::thread& upload : uploads) upload.join();
  EXPECT_TRUE(CloseSession(stub(), id).ok());
}

TEST_F(BadStreamsTest, AFewUnknownLayersOfACallGetASuggestion) {
  const std::string id =
      Bind(stub(), BindRequest("level", {{"sparsity", 0.5}}, {{"encoder", {4}}}));
  MaskMessage message;
  message.Open(id);
  for (uint32_t i = 0; i < 30; ++i) message.Tensor(Header(i, "encoder1", {4}), kSixteen);
  v1::CalcMaskResponse response;
  EXPECT_TRUE(CalcMask(stub(), message, &response).ok());
  int suggestions = 0;
  EXPECT_EQ(response.results_size(), 30);
  for (const v1::MaskResult& result : response.results()) {
    EXPECT_EQ(result.error().code(), grpc::StatusCode::NOT_FOUND);
    EXPECT_THAT(result.error().message(), HasSubstr("has no layer \"encoder1\""));
    suggestions += absl::StrContains(result.error().message(), "did you mean") ? 1 : 0;
  }
  EXPECT_EQ(suggestions, 10);
  EXPECT_TRUE(CloseSession(stub(), id).ok());
}

}  // namespace
}  // namespace nni_compression::testing
