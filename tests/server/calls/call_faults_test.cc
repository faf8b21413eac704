// Calls of a real server that end at each point where they wait: for memory, for their session, for
// their task, for the write, for the storage. However they end there, the server lives, the others
// go on, and the memory is back.
#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/storage/memory_storage.h"
#include "tests/testing/test_server.h"

namespace nni_compression::testing {
namespace {

enum class Fault { kCancel, kDeadline, kShutdown };

// A storage that stops where the test says.
class GatedStorage : public server::MemoryStorage {
 public:
  struct Gate {
    Latch reached;
    Latch open;
  };

  absl::StatusOr<server::StoredSession> Load(const server::SessionKey& key) override {
    Pass(load);
    return MemoryStorage::Load(key);
  }
  std::vector<absl::Status> Apply(absl::Span<const server::SessionChange> changes) override {
    Pass(apply);
    return MemoryStorage::Apply(changes);
  }

  // Null: no stop.
  std::shared_ptr<Gate> load;
  std::shared_ptr<Gate> apply;

 private:
  static void Pass(const std::shared_ptr<Gate>& gate) {
    if (gate == nullptr) return;
    gate->reached.Set();
    gate->open.Wait();
  }
};

// Layers "a" of a slow pruner and of a quantizer.
constexpr int64_t kElements = 4 << 20;
constexpr int64_t kRoomForOne = 20 << 20;  // such tensor

class CallFaultsTest : public ::testing::TestWithParam<Fault> {
 protected:
  CallFaultsTest() { Start(); }
  ~CallFaultsTest() override {
    if (ended_server_ || server_ == nullptr) return;
    EXPECT_TRUE(server_->MemoryReturnsTo(before_)) << server_->server().memory_reserved();
    grpc::ClientContext context;
    v1::ListAlgorithmsResponse response;
    EXPECT_TRUE(server_->stub().ListAlgorithms(&context, {}, &response).ok());
  }

  void Start() {
    server::ServerOptions options;
    options.memory_budget = kRoomForOne;
    options.storage = storage_;
    options.cache_budget = 0;
    options.sessions.default_lease = options.sessions.max_lease;  // longer than any test waits
    server_ = std::make_unique<TestServer>(options);
  }

  void BindOne(const std::string& algorithm, int64_t elements,
               const std::map<std::string, double>& rule = {}) {
    id_ = Bind(server_->stub(), BindRequest(algorithm, rule, {{"a", {elements}}}));
    before_ = server_->server().memory_reserved();
  }

  // Long enough to come to the point on a busy machine; the test then waits for it.
  void SetDeadline(grpc::ClientContext& context) {
    if (GetParam() == Fault::kDeadline) {
      context.set_deadline(absl::ToChronoTime(absl::Now() + deadline_));
    }
  }

  // A CalcMask of which everything was sent.
  std::unique_ptr<MaskStream> Send(const MaskMessage& message) {
    auto stream = std::make_unique<MaskStream>(
        server_->stub(), [this](grpc::ClientContext* context) { SetDeadline(*context); });
    stream->Send(message);
    return stream;
  }

  // Ends the call; when this returns, the client has its status. A server that was shut down waits
  // for `then` to let it.
  template <typename StreamType, typename Then>
  void End(StreamType& stream, Then then) {
    std::thread shutdown;
    if (GetParam() == Fault::kCancel) stream.context.TryCancel();
    if (GetParam() == Fault::kShutdown) {
      ended_server_ = true;
      shutdown = std::thread([this] { server_->server().Drain(absl::ZeroDuration()); });
    }
    stream.ReadAll();
    EXPECT_FALSE(stream.Finish().ok());
    then();
    if (shutdown.joinable()) shutdown.join();
  }

  const std::shared_ptr<GatedStorage> storage_ = std::make_shared<GatedStorage>();
  std::unique_ptr<TestServer> server_;
  std::string id_;
  int64_t before_ = 0;
  bool ended_server_ = false;
  absl::Duration deadline_ = absl::Seconds(3);
};

// A header and the first chunk.
MaskMessage BeginTensor(const std::string& id, int64_t elements) {
  MaskMessage message;
  message.Open(id).Add(Header(0, "a", {elements}));
  const std::string ones = Bytes(std::vector<float>(static_cast<size_t>(elements), 1));
  return message.Chunk(0, 0, ones.substr(0, 1 << 20));
}

TEST_P(CallFaultsTest, WhileItWaitsForMemory) {
  BindOne("slow", kElements);
  auto holds = std::make_unique<MaskStream>(server_->stub());
  holds->Send(BeginTensor(id_, kElements));
  ASSERT_TRUE(
      Eventually([&] { return server_->server().memory_reserved() > before_ + kElements; }));
  const auto waits = Send(BeginTensor(id_, kElements));
  ASSERT_TRUE(Eventually([&] { return server_->server().memory_waiting() == 1; }));
  End(*waits, [] {});
  holds = nullptr;
}

// The memory is granted while the call ends, at moments that the scheduler chooses.
TEST_P(CallFaultsTest, WhileMemoryIsGranted) {
  BindOne("slow", kElements);
  for (int round = 0; round < 10 && !ended_server_; ++round) {
    auto holds = std::make_unique<MaskStream>(server_->stub());
    holds->Send(BeginTensor(id_, kElements));
    ASSERT_TRUE(
        Eventually([&] { return server_->server().memory_reserved() > before_ + kElements; }));
    const auto waits = Send(BeginTensor(id_, kElements));
    ASSERT_TRUE(Eventually([&] { return server_->server().memory_waiting() == 1; }));
    std::thread lets_go([&] { holds->context.TryCancel(); });
    End(*waits, [] {});
    lets_go.join();
    holds = nullptr;
    if (!ended_server_) {
      EXPECT_TRUE(server_->MemoryReturnsTo(before_));
    }
    if (GetParam() == Fault::kDeadline) break;  // of three seconds
  }
}

TEST_P(CallFaultsTest, WhileItsSessionIsLoaded) {
  // Of a call whose cancellation is late the mask is computed.
  BindOne("level", 4, {{"sparsity", 0.5}});
  server_ = nullptr;
  const auto gate = std::make_shared<GatedStorage::Gate>();
  storage_->load = gate;
  Start();
  before_ = server_->server().memory_reserved();
  MaskMessage empty;
  const auto stream = Send(empty);
  stream->Send(MaskMessage().Open(id_).Tensor(Header(0, "a", {4}), Bytes({1, 2, 3, 4})));
  gate->reached.Wait();
  End(*stream, [&] { gate->open.Set(); });
  if (ended_server_) return;
  // The session was loaded all the same, which takes memory of its own.
  v1::GetSessionResponse response;
  EXPECT_TRUE(GetSession(server_->stub(), id_, &response).ok());
  ASSERT_TRUE(CloseSession(server_->stub(), id_).ok());
  // Its report takes more than the catalogue's entry did, until it has had its time.
  server_->Advance(absl::Hours(1));
  before_ = 0;
}

TEST_P(CallFaultsTest, WhileItsTaskRuns) {
  BindOne("slow", 4);
  const auto stream =
      Send(MaskMessage().Open(id_).Tensor(Header(0, "a", {4}), Bytes({1, 2, 3, 4})));
  server_->slow().computing.Wait();
  End(*stream, [&] { server_->slow().release.Set(); });
}

TEST_P(CallFaultsTest, WhileWhatItChangedIsStored) {
  BindOne("level", 4, {{"sparsity", 0.5}});
  const auto gate = std::make_shared<GatedStorage::Gate>();
  storage_->apply = gate;
  const auto stream =
      Send(MaskMessage().Open(id_).Tensor(Header(0, "a", {4}), Bytes({1, 2, 3, 4})));
  gate->reached.Wait();
  End(*stream, [&] { gate->open.Set(); });
}

TEST_P(CallFaultsTest, WhileItWrites) {
  BindOne("dorefa", kElements / 2);
  QuantizeStream stream(server_->stub(),
                        [this](grpc::ClientContext* context) { SetDeadline(*context); });
  const std::string values = Bytes(std::vector<float>(static_cast<size_t>(kElements / 2), 0.5));
  QuantizeMessage first;
  first.Open(id_).Add(Header(0, "a", {kElements / 2}));
  first.proto().mutable_open()->set_reply(v1::QuantizeWeightRequest::REPLY_VALUES);
  stream.Send(first);
  for (size_t at = 0; at < values.size(); at += 1 << 20) {
    stream.Send(QuantizeMessage().Chunk(0, at, values.substr(at, 1 << 20)));
  }
  stream.Send(QuantizeMessage().Commit(0, values.size()));
  v1::QuantizeWeightResponse response;
  ASSERT_TRUE(stream.Read(&response)) << "of more than the transport takes at a time";
  End(stream, [] {});
}

TEST_P(CallFaultsTest, WhileMoreRepliesWaitThanItReadsOnWith) {
  BindOne("level", 4, {{"sparsity", 0.5}});
  // A machine that is too slow for the deadline gets a longer one.
  for (bool reached = false; !reached; deadline_ *= 2) {
    const auto stream = Send(MaskMessage().Open(id_));
    const absl::Time late = absl::Now() + deadline_;
    std::thread sender([&] {
      MaskMessage wrong;
      for (uint32_t i = 0; i < 100000; i += 1000) {
        for (uint32_t j = i; j < i + 1000; ++j) {
          v1::TensorHeader header = Header(j, absl::StrCat("no such layer ", j), {4});
          header.set_byte_length(0);
          wrong.Add(header).Commit(j, 0);
        }
        if (!stream->Send(wrong)) return;
        wrong = MaskMessage();
      }
    });
    // Half of a kilobyte for each of the replies that wait.
    const auto waits = [&] { return server_->server().memory_reserved() > before_ + 4096 * 512; };
    EXPECT_TRUE(Eventually([&] {
      reached = reached || waits();
      return reached || (GetParam() == Fault::kDeadline && absl::Now() > late);
    }));
    reached = reached || GetParam() != Fault::kDeadline;  // it failed, and fails again
    End(*stream, [] {});
    sender.join();
    if (!ended_server_) {
      EXPECT_TRUE(server_->MemoryReturnsTo(before_));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, CallFaultsTest,
                         ::testing::Values(Fault::kCancel, Fault::kDeadline, Fault::kShutdown),
                         [](const auto& ending) {
                           return std::string(ending.param == Fault::kCancel     ? "Cancelled"
                                              : ending.param == Fault::kDeadline ? "ByItsDeadline"
                                                                                 : "ByAShutdown");
                         });

}  // namespace
}  // namespace nni_compression::testing
