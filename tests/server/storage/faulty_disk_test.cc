// Calls to a server whose disk fails: a clear error, the session as it was, and nobody else
// notices.
#include "tests/testing/faulty_disk.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/calls/call_context.h"
#include "server/storage/disk_storage.h"
#include "tests/testing/test_server.h"

namespace nni_compression::testing {
namespace {

namespace fs = std::filesystem;

const std::vector<int64_t> kBig = {300, 1000};  // its mask is a file
const std::vector<int64_t> kSmall = {100};

// A storage whose operations have the same order in every run: it collects no garbage beside them.
class OrderlyStorage : public server::Storage {
 public:
  explicit OrderlyStorage(std::unique_ptr<server::Storage> storage)
      : storage_(std::move(storage)) {}
  std::vector<absl::Status> Apply(absl::Span<const server::SessionChange> changes) override {
    return storage_->Apply(changes);
  }
  absl::StatusOr<std::vector<server::CatalogueRow>> List() override { return storage_->List(); }
  absl::StatusOr<server::StoredSession> Load(const server::SessionKey& key) override {
    return storage_->Load(key);
  }
  absl::StatusOr<std::string> LoadReport(const server::SessionKey& key) override {
    return storage_->LoadReport(key);
  }

 private:
  const std::unique_ptr<server::Storage> storage_;
};

// Weights without equal magnitudes; another seed gives another order.
std::string Weight(const std::vector<int64_t>& shape, uint32_t seed) {
  size_t size = 1;
  for (const int64_t dimension : shape) size *= static_cast<size_t>(dimension);
  std::vector<float> weight(size);
  for (size_t i = 0; i < size; ++i) {
    weight[i] = static_cast<float>((i * 7919 + seed * 104729) % 1000003) - 500000.25f;
  }
  return Bytes(weight);
}

struct Answer {
  grpc::Status status;
  std::string bytes;
};

// A trainer that prunes one model and quantizes another, call by call; every call can be repeated.
class Job {
 public:
  using Call = std::function<Answer(v1::CompressionService::Stub&)>;

  std::vector<Call> Calls() {
    const auto agp = BindRequest("agp", {{"final_sparsity", 0.8}, {"end_epoch", 10}},
                                 {{"big", kBig}, {"small", kSmall}});
    const auto naive = BindRequest("naive", {}, {{"fc", {4}}});
    return {Binding(agp, &pruner_),
            Epoch(3),
            Mask("big", kBig, 1),
            Mask("small", kSmall, 1),
            Binding(naive, &quantizer_),
            Stepping(1, {-127, 1}),
            Epoch(6),
            Mask("big", kBig, 2),
            Stepping(2, {-254, 1}),
            Closing(&quantizer_)};
  }

  // Whether the mask of the last epoch is still decided by the weight that came first.
  Answer LastMask(v1::CompressionService::Stub& stub) { return Mask("big", kBig, 3)(stub); }

  const std::string& quantizer() const { return quantizer_; }

 private:
  static Call Binding(v1::BindModelRequest request, std::string* id) {
    request.set_request_id(request.algorithm());
    return [request, id](v1::CompressionService::Stub& stub) {
      grpc::ClientContext context;
      v1::BindModelResponse response;
      const grpc::Status status = stub.BindModel(&context, request, &response);
      *id = response.session_id();
      return Answer{status, absl::StrJoin(response.stale_layers(), ",")};
    };
  }

  Call Epoch(int64_t epoch) {
    return [this, epoch](v1::CompressionService::Stub& stub) {
      v1::UpdateEpochResponse response;
      const grpc::Status status = UpdateEpoch(stub, pruner_, epoch, &response);
      return Answer{status, absl::StrJoin(response.stale_layers(), ",")};
    };
  }

  Call Mask(const std::string& layer, const std::vector<int64_t>& shape, uint32_t seed) {
    return [this, layer, shape, seed](v1::CompressionService::Stub& stub) {
      MaskMessage message;
      message.Open(pruner_).Tensor(Header(0, layer, shape), Weight(shape, seed));
      v1::CalcMaskResponse response;
      const grpc::Status status = CalcMask(stub, message, &response);
      return Answer{status, PayloadOf(response, 0)};
    };
  }

  Call Stepping(int64_t step, const std::vector<float>& range) {
    return [this, step, range](v1::CompressionService::Stub& stub) {
      StepMessage message;
      message.Open(quantizer_).Tensor(Header(0, "fc", {2}, v1::TENSOR_ROLE_RANGE), Bytes(range));
      message.proto().mutable_open()->set_step(step);
      v1::StepResponse response;
      const grpc::Status status = Step(stub, message, &response);
      return Answer{status, response.SerializeAsString()};
    };
  }

  static Call Closing(const std::string* id) {
    return [id](v1::CompressionService::Stub& stub) { return Answer{CloseSession(stub, *id), ""}; };
  }

  std::string pruner_;
  std::string quantizer_;
};

std::vector<std::string> Uninterrupted() {
  TestServer server;
  Job job;
  std::vector<std::string> answers;
  for (const Job::Call& call : job.Calls()) {
    const Answer answer = call(server.stub());
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
    answers.push_back(answer.bytes);
  }
  return answers;
}

struct Parameter {
  std::string name;
  int error;
  bool lasting;
  server::DurabilityLevel durability;
};

class FaultyDiskTest : public ::testing::TestWithParam<Parameter> {
 protected:
  FaultyDiskTest() { folder_ = testing::MakeFaultyDiskFolder(); }
  ~FaultyDiskTest() override {
    server_.reset();
    disk_.reset();
    fs::remove_all(folder_);
  }

  // A server on a directory of its own, with somebody else's session.
  void Begin() {
    server_.reset();
    disk_.reset();
    fs::remove_all(folder_ + "/data");
    disk_ = std::make_unique<FaultyDisk>(folder_ + "/data");
    Restart();
    other_ = Bind(stub(), BindRequest("level", {{"sparsity", 0.5}}, {{"w", {8}}}));
  }

  void Restart() {
    server_.reset();
    auto storage = server::DiskStorage::Open({folder_ + "/data", GetParam().durability, {}});
    ASSERT_TRUE(storage.ok()) << storage.status();
    server::ServerOptions options;
    options.storage = std::make_shared<OrderlyStorage>(*std::move(storage));
    server_ = std::make_unique<TestServer>(options);
  }

  v1::CompressionService::Stub& stub() { return server_->stub(); }

  void ExpectIsFault(const grpc::Status& status) {
    const bool lost = GetParam().error == EIO && status.error_code() == grpc::StatusCode::DATA_LOSS;
    EXPECT_TRUE(status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED || lost)
        << status.error_code() << ": " << status.error_message();
  }

  // Sets the epoch as a trainer does who was told of a revision; the one that it is told of then.
  std::string EpochAt(const std::string& told, const std::string& id, int64_t epoch) {
    grpc::ClientContext context;
    if (!told.empty()) context.AddMetadata(server::kRevisionKey, told);
    v1::UpdateEpochRequest request;
    request.set_session_id(id);
    request.set_epoch(epoch);
    v1::UpdateEpochResponse response;
    const grpc::Status status = stub().UpdateEpoch(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    const auto& trailers = context.GetServerTrailingMetadata();
    const auto it = trailers.find(server::kRevisionKey);
    return it == trailers.end() ? "" : std::string(it->second.data(), it->second.size());
  }

  // All calls of a job, those that fail once more when the disk is well, beside another session.
  void RunJob(Job* job, const std::vector<std::string>& expected) {
    const std::vector<Job::Call> calls = job->Calls();
    int64_t epoch = 0;
    for (size_t i = 0; i < calls.size(); ++i) {
      SCOPED_TRACE(absl::StrCat("call ", i));
      Answer answer = calls[i](stub());
      if (!answer.status.ok()) {
        ExpectIsFault(answer.status);
        // A layer that was answered before the call failed stays as it is.
        EXPECT_TRUE(answer.bytes.empty() || answer.bytes == expected[i]);
        EXPECT_GT(disk_->failures(), 0);
        EXPECT_TRUE(KeepAlive(stub(), other_).ok());
        disk_->Heal();
        v1::UpdateEpochResponse response;
        EXPECT_TRUE(UpdateEpoch(stub(), other_, ++epoch, &response).ok());
        answer = calls[i](stub());
      }
      ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
      EXPECT_TRUE(answer.bytes == expected[i]) << "another answer than without a fault";
    }
  }

  std::string folder_;
  std::unique_ptr<FaultyDisk> disk_;
  std::unique_ptr<TestServer> server_;
  std::string other_;
};

TEST_P(FaultyDiskTest, CallsThatFailCanBeRepeatedAsIfNothingHadBeen) {
  const std::vector<std::string> expected = Uninterrupted();
  int failures = 1;
  int at = 1;
  for (; failures > 0; ++at) {
    SCOPED_TRACE(absl::StrCat("operation ", at));
    Begin();
    disk_->Arm({GetParam().error, at, GetParam().lasting});
    Job job;
    RunJob(&job, expected);
    failures = disk_->failures();
    disk_->Heal();
    if (HasFatalFailure() || HasNonfatalFailure()) return;

    Restart();
    EXPECT_TRUE(job.LastMask(stub()).bytes == expected[7]);
    v1::GetSessionResponse report;
    EXPECT_TRUE(GetSession(stub(), job.quantizer(), &report).ok());
    EXPECT_EQ(report.session().state(), v1::SESSION_STATE_CLOSED);
    EXPECT_EQ(report.session().step(), 2);
  }
  EXPECT_GT(at, 30) << "the disk does not see what the server does";
}

// A call that is told a revision that was never stored would be refused after the next restart,
// as if the directory had lost something.
TEST_P(FaultyDiskTest, NobodyIsToldOfARevisionThatWasNotStored) {
  int failures = 1;
  int at = 1;
  for (; failures > 0; ++at) {
    SCOPED_TRACE(absl::StrCat("operation ", at));
    Begin();
    const std::string id = Bind(
        stub(), BindRequest("agp", {{"final_sparsity", 0.8}, {"end_epoch", 10}}, {{"w", {4}}}));
    std::string told = EpochAt("", id, 3);
    disk_->Arm({GetParam().error, at, GetParam().lasting});
    v1::UpdateEpochResponse response;
    const grpc::Status status = UpdateEpoch(stub(), id, 4, &response);
    if (!status.ok()) ExpectIsFault(status);
    failures = disk_->failures();
    disk_->Heal();
    // Nothing changes, so nothing is written.
    told = EpochAt(told, id, status.ok() ? 4 : 3);
    Restart();
    EpochAt(told, id, 5);
    if (HasFailure()) return;
  }
  EXPECT_GT(at, 2) << "the disk does not see what the server does";
}

INSTANTIATE_TEST_SUITE_P(
    Disks, FaultyDiskTest,
    ::testing::Values(Parameter{"InputOutputErrorOnce", EIO, false,
                                server::DurabilityLevel::kPower},
                      Parameter{"FullDisk", ENOSPC, true, server::DurabilityLevel::kProcess},
                      Parameter{"ReadOnlyDisk", EROFS, true, server::DurabilityLevel::kProcess}),
    [](const auto& parameter) { return parameter.param.name; });

}  // namespace
}  // namespace nni_compression::testing
