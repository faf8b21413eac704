// Tensors that trainers on the server's host hand over in shared memory, and what they may try.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/testing/sealed_file.h"
#include "tests/testing/shm_socket_client.h"
#include "tests/testing/test_server.h"

namespace nni_compression::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int64_t kFile = 1 << 20;
constexpr int64_t kSmallBudget = 1 << 20;
constexpr uint64_t kHuge = std::numeric_limits<uint64_t>::max();
const std::vector<float> kWeight = {1, -2, 3, -4, 5, -6, 7, -8, 9, -10, 11, -12, 13, -14, 15, -16};

// A trainer with a region for weights and one for results.
struct Trainer {
  explicit Trainer(const std::string& path, const std::string& tenant = "", int64_t size = kFile)
      : side(path),
        weights_file(SealedFile(size)),
        results_file(SealedFile(size)),
        weights(weights_file.get(), size),
        results(results_file.get(), size) {
    EXPECT_EQ(side.Hello(tenant).code(), 0);
    weights_id = side.AddRegion(weights_file.get(), static_cast<uint64_t>(size), false).region();
    results_id = side.AddRegion(results_file.get(), static_cast<uint64_t>(size), true).region();
  }

  void Put(uint64_t offset, const std::vector<float>& values) {
    std::memcpy(weights.data() + offset, values.data(), values.size() * sizeof(float));
  }

  ShmSocketClient side;
  server::FileDescriptor weights_file;
  server::FileDescriptor results_file;
  Mapping weights;
  Mapping results;
  std::string weights_id;
  std::string results_id;
};

v1::TensorHeader Shared(v1::TensorHeader header, const std::string& region, uint64_t offset) {
  header.mutable_shared_memory()->set_region(region);
  header.mutable_shared_memory()->set_offset(offset);
  return header;
}

v1::TensorHeader ResultAt(v1::TensorHeader header, const std::string& region, uint64_t offset,
                          uint64_t capacity) {
  header.mutable_result_place()->set_region(region);
  header.mutable_result_place()->set_offset(offset);
  header.mutable_result_place()->set_capacity(capacity);
  return header;
}

class SharedMemoryTest : public ::testing::Test {
 protected:
  SharedMemoryTest() : server_(Options(path_)), trainer_(std::make_unique<Trainer>(path_)) {
    id_ = Bind(stub(), BindRequest("level", {{"sparsity", 0.5}}, {{"a", {16}}, {"b", {16}}}));
    slow_ = Bind(stub(), BindRequest("slow", {}, {{"a", {16}}}));
    quantizer_ = Bind(stub(), BindRequest("qat", {{"quant_bits", 8}}, {{"a", {16}}}));
    before_ = server_.server().memory_reserved();
  }

  // Whatever a trainer did, nothing of it is left when it is gone.
  ~SharedMemoryTest() override {
    EXPECT_TRUE(server_.MemoryReturnsTo(before_)) << server_.server().memory_reserved();
    trainer_.reset();
    EXPECT_TRUE(Eventually([&] { return server_.server().shared_bytes() == 0; }));
    EXPECT_TRUE(Eventually([&] { return server_.server().shm_connections() == 0; }));
  }

  static server::ServerOptions Options(const std::string& path) {
    server::ServerOptions options;
    options.memory_budget = kSmallBudget;
    options.authenticator = TenantFromMetadata();
    options.shm_socket.path = path;
    return options;
  }

  v1::CompressionService::Stub& stub() { return server_.stub(); }

  v1::TensorHeader InShared(uint32_t index, const std::string& layer, uint64_t offset) {
    return Shared(Header(index, layer, {16}), trainer_->weights_id, offset);
  }

  // The answer to one header and its commit.
  v1::CalcMaskResponse Ask(const v1::TensorHeader& header) {
    v1::CalcMaskResponse response;
    const grpc::Status status = CalcMask(
        stub(), MaskMessage().Open(id_).Add(header).Commit(0, header.byte_length()), &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  grpc::StatusCode ErrorOf(const v1::TensorHeader& header) {
    const v1::CalcMaskResponse response = Ask(header);
    EXPECT_EQ(response.results_size(), 1);
    EXPECT_EQ(response.headers_size(), 0);
    return static_cast<grpc::StatusCode>(response.results(0).error().code());
  }

  const std::string path_ = ShmSocketPath();
  TestServer server_;
  std::unique_ptr<Trainer> trainer_;
  std::string id_;
  std::string slow_;
  std::string quantizer_;
  int64_t before_ = 0;
};

TEST_F(SharedMemoryTest, AMaskIsTheSameAsOverTheNetwork) {
  trainer_->Put(64, kWeight);
  v1::TensorHeader header = ResultAt(InShared(0, "a", 64), trainer_->results_id, 128, 2);
  const v1::CalcMaskResponse shared = Ask(header);
  ASSERT_EQ(shared.headers_size(), 1);
  EXPECT_EQ(shared.headers(0).shared_memory().region(), trainer_->results_id);
  EXPECT_EQ(shared.headers(0).shared_memory().offset(), 128u);
  EXPECT_THAT(shared.chunks(), IsEmpty());
  EXPECT_EQ(shared.commits_size(), 1);
  v1::CalcMaskResponse streamed;
  ASSERT_TRUE(CalcMask(stub(), MaskMessage().Open(id_).Tensor(Header(0, "b", {16}), Bytes(kWeight)),
                       &streamed)
                  .ok());
  EXPECT_EQ(std::string(reinterpret_cast<char*>(trainer_->results.data() + 128), 2),
            PayloadOf(streamed, 0));
}

TEST_F(SharedMemoryTest, CodesAreTheSameAsOverTheNetwork) {
  trainer_->Put(0, kWeight);
  v1::QuantizeWeightResponse shared;
  v1::QuantizeWeightResponse streamed;
  const v1::TensorHeader header = ResultAt(InShared(0, "a", 0), trainer_->results_id, 64, 32);
  ASSERT_TRUE(RunCall<QuantizeStream>(
                  stub(), QuantizeMessage().Open(quantizer_).Add(header).Commit(0, 64), &shared)
                  .ok());
  ASSERT_TRUE(RunCall<QuantizeStream>(
                  stub(),
                  QuantizeMessage().Open(quantizer_).Tensor(Header(0, "a", {16}), Bytes(kWeight)),
                  &streamed)
                  .ok());
  ASSERT_EQ(shared.headers_size(), 1);
  EXPECT_TRUE(shared.headers(0).has_shared_memory());
  EXPECT_EQ(std::string(reinterpret_cast<char*>(trainer_->results.data() + 64), 16),
            PayloadOf(streamed, 0));
}

TEST_F(SharedMemoryTest, OneCallMayMixBothWays) {
  trainer_->Put(0, kWeight);
  v1::CalcMaskResponse response;
  MaskMessage message;
  message.Open(id_)
      .Add(InShared(0, "a", 0))
      .Add(ResultAt(Header(1, "b", {16}), trainer_->results_id, 0, 2))
      .Chunk(1, 0, Bytes(kWeight))
      .Commit(0, 64)
      .Commit(1, 64);
  ASSERT_TRUE(CalcMask(stub(), message, &response).ok());
  ASSERT_EQ(response.results_size(), 2);
  EXPECT_EQ(PayloadOf(response, 0),
            std::string(reinterpret_cast<char*>(trainer_->results.data()), 2));
}

TEST_F(SharedMemoryTest, AResultThatDoesNotFitIsStreamed) {
  trainer_->Put(0, kWeight);
  const v1::CalcMaskResponse response =
      Ask(ResultAt(InShared(0, "a", 0), trainer_->results_id, 0, 1));
  ASSERT_EQ(response.headers_size(), 1);
  EXPECT_FALSE(response.headers(0).has_shared_memory());
  EXPECT_EQ(PayloadOf(response, 0).size(), 2u);
}

TEST_F(SharedMemoryTest, AWeightDoesNotCountAgainstTheMemoryBudget) {
  constexpr int64_t kElements = 2 * kSmallBudget / 4;
  const Trainer large(path_, "", 2 * kSmallBudget);
  const std::string id =
      Bind(stub(), BindRequest("level", {{"sparsity", 0.5}}, {{"w", {kElements}}}));
  before_ = server_.server().memory_reserved();  // with the mask that the session keeps
  v1::CalcMaskResponse response;
  const v1::TensorHeader header = Shared(Header(0, "w", {kElements}), large.weights_id, 0);
  ASSERT_TRUE(CalcMask(stub(), MaskMessage().Open(id).Add(header).Commit(0, header.byte_length()),
                       &response)
                  .ok());
  EXPECT_EQ(PayloadOf(response, 0).size(), static_cast<size_t>(kElements / 8));
}

TEST_F(SharedMemoryTest, OffsetsAndLengthsThatWrapAreTheLayersError) {
  for (const uint64_t offset : {kHuge - 63, kHuge, static_cast<uint64_t>(kFile),
                                static_cast<uint64_t>(kFile) - 32, uint64_t{1}}) {
    EXPECT_EQ(ErrorOf(InShared(0, "a", offset)), grpc::StatusCode::INVALID_ARGUMENT) << offset;
  }
  for (const uint64_t capacity : {kHuge, kHuge - 63, static_cast<uint64_t>(kFile)}) {
    EXPECT_EQ(ErrorOf(ResultAt(InShared(0, "a", 0), trainer_->results_id, 64, capacity)),
              grpc::StatusCode::INVALID_ARGUMENT)
        << capacity;
  }
}

TEST_F(SharedMemoryTest, AByteLengthThatIsNotTheLayersIsRefused) {
  v1::TensorHeader header = InShared(0, "a", 0);
  header.set_byte_length(kHuge - 63);
  EXPECT_EQ(ErrorOf(header), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(SharedMemoryTest, RegionsOfAnotherTenantLookLikeNone) {
  const Trainer other(path_, "other");
  const v1::CalcMaskResponse theirs = Ask(Shared(Header(0, "a", {16}), other.weights_id, 0));
  const v1::CalcMaskResponse none = Ask(Shared(Header(0, "a", {16}), std::string(16, 'x'), 0));
  EXPECT_EQ(theirs.results(0).error().code(), static_cast<int>(grpc::StatusCode::NOT_FOUND));
  EXPECT_EQ(theirs.results(0).error().message(), none.results(0).error().message());
  EXPECT_EQ(ErrorOf(ResultAt(InShared(0, "a", 0), other.results_id, 0, 2)),
            grpc::StatusCode::NOT_FOUND);
}

TEST_F(SharedMemoryTest, ResultsGoNowhereButIntoWritableRegions) {
  EXPECT_EQ(ErrorOf(ResultAt(InShared(0, "a", 0), trainer_->weights_id, 0, 2)),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(SharedMemoryTest, ALayersErrorLeavesTheOthersAlone) {
  trainer_->Put(0, kWeight);
  v1::CalcMaskResponse response;
  MaskMessage message;
  message.Open(id_)
      .Add(InShared(0, "a", kHuge))
      .Add(InShared(1, "b", 0))
      .Commit(0, 64)
      .Commit(1, 64);
  ASSERT_TRUE(CalcMask(stub(), message, &response).ok());
  ASSERT_EQ(response.results_size(), 2);
  EXPECT_TRUE(response.results(0).has_error());
  EXPECT_FALSE(response.results(1).has_error());
}

TEST_F(SharedMemoryTest, ChunksOfATensorThatIsHereAreRefused) {
  v1::CalcMaskResponse response;
  const grpc::Status status =
      CalcMask(stub(), MaskMessage().Open(id_).Add(InShared(0, "a", 0)).Chunk(0, 0, Bytes(kWeight)),
               &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("on the server already"));
}

TEST_F(SharedMemoryTest, OnlyWeightsWithoutDigestsCome) {
  v1::TensorHeader mask =
      Shared(Header(0, "a", {16}, v1::TENSOR_ROLE_MASK), trainer_->weights_id, 0);
  mask.set_dtype(v1::DATA_TYPE_BIT);
  mask.set_byte_length(2);
  EXPECT_EQ(ErrorOf(mask), grpc::StatusCode::INVALID_ARGUMENT);
  v1::TensorHeader digest = InShared(0, "a", 0);
  digest.set_digest(std::string(32, 'd'));
  EXPECT_EQ(ErrorOf(digest), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(SharedMemoryTest, StepAndExportTakeNoSharedMemory) {
  v1::StepResponse step;
  v1::TensorHeader range = Header(0, "a", {2}, v1::TENSOR_ROLE_RANGE);
  StepMessage message;
  message.Open(quantizer_).Add(Shared(range, trainer_->weights_id, 0)).Commit(0, 8);
  message.proto().mutable_open()->set_step(1);
  EXPECT_EQ(Step(stub(), message, &step).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  ExportMessage exported;
  exported.Open(id_).Add(InShared(0, "a", 0)).Commit(0, 64);
  exported.proto().mutable_open()->set_format("safetensors");
  v1::ExportResponse files;
  EXPECT_EQ(RunCall<ExportStream>(stub(), exported, &files).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(SharedMemoryTest, ATensorWithoutItsCommitIsAborted) {
  MaskStream stream(stub());
  stream.Send(MaskMessage().Open(id_).Add(InShared(0, "a", 0)));
  stream.HalfClose();
  EXPECT_EQ(stream.Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(SharedMemoryTest, AFileThatIsClosedInFlightIsUsedToTheEnd) {
  MaskStream stream(stub());
  stream.Send(MaskMessage()
                  .Open(slow_)
                  .Add(ResultAt(InShared(0, "a", 0), trainer_->results_id, 0, 2))
                  .Commit(0, 64));
  server_.slow().computing.Wait();
  trainer_.reset();  // with its file, its mapping and its connection
  EXPECT_TRUE(Eventually([&] { return server_.server().shm_connections() == 0; }));
  EXPECT_EQ(server_.server().shared_bytes(), kFile) << "the weight's is in use";
  server_.slow().release.Set();
  stream.HalfClose();
  const v1::CalcMaskResponse response = stream.ReadAll();
  EXPECT_TRUE(stream.Finish().ok());
  EXPECT_FALSE(response.headers(0).has_shared_memory()) << "the result's is gone";
  EXPECT_EQ(PayloadOf(response, 0).size(), 2u);
}

TEST_F(SharedMemoryTest, ATrainerThatIsKilledWhileMappedGivesEverythingBack) {
  int ids[2];
  ASSERT_EQ(pipe(ids), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const Trainer trainer(path_);
    const std::string both = trainer.weights_id + trainer.results_id;
    if (write(ids[1], both.data(), both.size()) > 0) pause();
    _exit(1);
  }
  std::string both(32, '\0');
  ASSERT_EQ(read(ids[0], both.data(), both.size()), 32);
  MaskStream stream(stub());
  stream.Send(
      MaskMessage()
          .Open(slow_)
          .Add(ResultAt(Shared(Header(0, "a", {16}), both.substr(0, 16), 0), both.substr(16), 0, 2))
          .Commit(0, 64));
  server_.slow().computing.Wait();
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  EXPECT_TRUE(Eventually([&] { return server_.server().shm_connections() == 1; }));
  EXPECT_EQ(server_.server().shared_bytes(), 3 * kFile) << "ours, and the weight in use";
  server_.slow().release.Set();
  stream.HalfClose();
  EXPECT_EQ(PayloadOf(stream.ReadAll(), 0).size(), 2u);
  EXPECT_TRUE(stream.Finish().ok());
  EXPECT_TRUE(Eventually([&] { return server_.server().shared_bytes() == 2 * kFile; }));
  close(ids[0]);
  close(ids[1]);
}

TEST_F(SharedMemoryTest, ACallWhoseDeadlinePassedGivesItsRegionBack) {
  MaskStream stream(stub());
  stream.Send(MaskMessage().Open(slow_).Add(InShared(0, "a", 0)).Commit(0, 64));
  server_.slow().computing.Wait();
  stream.context.TryCancel();
  EXPECT_FALSE(stream.Finish().ok());
  trainer_.reset();
  server_.slow().release.Set();
  EXPECT_TRUE(Eventually([&] { return server_.server().shared_bytes() == 0; }));
}

TEST_F(SharedMemoryTest, BytesThatChangeWhileTheyAreReadSpoilOnlyTheirOwnResult) {
  constexpr int64_t kElements = kFile / 4;
  const std::string masks =
      Bind(stub(), BindRequest("level", {{"sparsity", 0.5}}, {{"w", {kElements}}}));
  const std::string codes =
      Bind(stub(), BindRequest("naive", {{"quant_bits", 8}}, {{"w", {kElements}}}));
  before_ = server_.server().memory_reserved();
  std::atomic<bool> stop{false};
  std::thread scribbler([&] {
    uint32_t state = 1;
    auto* words = reinterpret_cast<volatile uint32_t*>(trainer_->weights.data());
    while (!stop) {
      state = state * 1664525 + 1013904223;
      words[state % kElements] = state;  // infinities and NaNs among them
    }
  });
  const v1::TensorHeader header = Shared(Header(0, "w", {kElements}), trainer_->weights_id, 0);
  for (int i = 0; i < 20; ++i) {
    v1::CalcMaskResponse mask;
    EXPECT_TRUE(
        CalcMask(stub(), MaskMessage().Open(masks).Add(header).Commit(0, kFile), &mask).ok());
    EXPECT_EQ(mask.results_size(), 1);
    v1::QuantizeWeightResponse quantized;
    EXPECT_TRUE(RunCall<QuantizeStream>(
                    stub(), QuantizeMessage().Open(codes).Add(header).Commit(0, kFile), &quantized)
                    .ok());
    EXPECT_EQ(quantized.results_size(), 1);
  }
  stop = true;
  scribbler.join();
  v1::CalcMaskResponse other;
  ASSERT_TRUE(
      CalcMask(stub(), MaskMessage().Open(id_).Tensor(Header(0, "a", {16}), Bytes(kWeight)), &other)
          .ok());
  EXPECT_EQ(other.results(0).achieved_sparsity(), 0.5);
}

TEST_F(SharedMemoryTest, TenThousandConnectionsDisturbNoTrainer) {
  for (int i = 0; i < 10000; ++i) {
    ShmSocketClient flood(path_);
    if (i % 1000 == 0) {
      trainer_->Put(0, kWeight);
      EXPECT_EQ(Ask(InShared(0, "a", 0)).headers_size(), 1);
    }
  }
  EXPECT_TRUE(Eventually([&] { return server_.server().shm_connections() == 1; }));
}

TEST_F(SharedMemoryTest, WhoIsNobodyGetsNoRegion) {
  ShmSocketClient nobody(path_);
  EXPECT_EQ(nobody.Hello("nobody").code(), static_cast<int>(grpc::StatusCode::UNAUTHENTICATED));
  EXPECT_TRUE(nobody.IsClosed());
}

TEST_F(SharedMemoryTest, WithoutAPathThereIsNoSocket) {
  server::ServerOptions options;
  TestServer plain(options);
  EXPECT_EQ(plain.server().shm_connections(), 0);
  EXPECT_EQ(plain.server().shared_bytes(), 0);
}

}  // namespace
}  // namespace nni_compression::testing
