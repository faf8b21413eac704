// Weights handed over in shared memory: the same answers as over the network, and what fails.
#include "client/cpp/shared_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/client/client_test_base.h"
#include "tests/testing/latch.h"

namespace nni_compression {
namespace {

using ::nni_compression::testing::Eventually;

constexpr char kBits[] = R"([{"quant_bits": 8, "op_types": ["default"]}])";
constexpr int64_t kColumns = 100001;  // times 3 times 4 bytes: more than kMinSharedBytes

class SharedMemoryTest : public ClientTestBase {
 protected:
  SharedMemoryTest() {
    for (int i = 0; i < 3; ++i) weights_.push_back(Weight(3 * kColumns, i));
  }

  static std::string NewPath() {
    static int next = 0;
    return absl::StrCat(::testing::TempDir(), "/nni-client-", getpid(), "-", next++);
  }

  static server::ServerOptions With(const std::string& path) {
    server::ServerOptions options;
    options.shm_socket.path = path;
    return options;
  }

  static ClientOptions Through(const std::string& path) {
    ClientOptions options;
    options.shm_socket = path;
    return options;
  }

  Session Bind(const std::string& path, const std::string& algorithm, const char* config,
               const server::Server& server) {
    auto session = Connect(AddressOf(server), Through(path))
                       .BindModel(Request(algorithm, config, {"a", "b", "c"}, 3, kColumns));
    EXPECT_TRUE(session.ok()) << session.status();
    return *std::move(session);
  }
  Session Bind(const std::string& path, const std::string& algorithm, const char* config) {
    return Bind(path, algorithm, config, *server_);
  }

  std::vector<Tensor> Tensors() const {
    return {MakeTensor<float>("a", {3, kColumns}, weights_[0]),
            MakeTensor<float>("b", {3, kColumns}, weights_[1]),
            MakeTensor<float>("c", {3, kColumns}, weights_[2])};
  }

  static std::vector<Mask> Masks(const Session& session, absl::Span<const Tensor> tensors) {
    auto masks = AllOrError(session.CalcMask(tensors));
    EXPECT_TRUE(masks.ok()) << masks.status();
    return *std::move(masks);
  }

  static bool Same(const std::vector<Mask>& a, const std::vector<Mask>& b) {
    if (a.size() != b.size()) return false;
    for (size_t i = 0; i < a.size(); ++i) {
      if (a[i].bits() != b[i].bits()) return false;
    }
    return true;
  }

  const std::string path_ = NewPath();
  std::unique_ptr<server::Server> server_ = StartServer(0, With(path_));
  std::vector<std::vector<float>> weights_;
};

TEST_F(SharedMemoryTest, MasksAreThoseOfTheNetwork) {
  const auto network = Masks(Bind("", "level", kLevel), Tensors());
  EXPECT_EQ(server_->shared_bytes(), 0);
  const Session session = Bind(path_, "level", kLevel);
  EXPECT_TRUE(Same(Masks(session, Tensors()), network));
  EXPECT_GT(server_->shared_bytes(), 0);
}

TEST_F(SharedMemoryTest, LayersThatAreDecidedAboutTogetherAreSentAgainTogether) {
  const auto other = StartServer();
  const auto bind = [&](const std::string& path) {
    BindRequest request = Request("global_magnitude", kLevel, {"a", "b", "c"}, 3, kColumns);
    request.layers[2].shape = {3, 4};  // too small to be shared
    auto session = Connect(AddressOf(*other), Through(path)).BindModel(request);
    EXPECT_TRUE(session.ok()) << session.status();
    return *std::move(session);
  };
  const std::vector<float> small = Weight(12, 2);
  std::vector<Tensor> tensors = Tensors();
  tensors[2] = MakeTensor<float>("c", {3, 4}, small);
  const auto network = Masks(bind(""), tensors);
  // The server that is called does not know the regions, so that "c" lacks the others at first.
  EXPECT_TRUE(Same(Masks(bind(path_), tensors), network));
  const auto missing = bind("").CalcMask(absl::MakeConstSpan(tensors).first(2));
  for (const auto& mask : missing) {
    EXPECT_EQ(mask.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(mask.status().message(), ::testing::HasSubstr("layer \"c\" is missing"));
  }
}

TEST_F(SharedMemoryTest, QuantizedWeightsAreThoseOfTheNetwork) {
  for (const char* algorithm : {"naive", "qat", "dorefa"}) {
    for (const QuantizeReply reply :
         {QuantizeReply::kCodes, QuantizeReply::kValues, QuantizeReply::kParameters}) {
      const Session near = Bind(path_, algorithm, kBits);
      const Session far = Bind("", algorithm, kBits);
      const auto shared = AllOrError(near.QuantizeWeight(Tensors(), reply));
      const auto sent = AllOrError(far.QuantizeWeight(Tensors(), reply));
      ASSERT_TRUE(shared.ok() && sent.ok()) << shared.status() << sent.status();
      for (size_t i = 0; i < sent->size(); ++i) {
        EXPECT_EQ((*shared)[i].data.span(), (*sent)[i].data.span());
        EXPECT_EQ((*shared)[i].parameters.scale, (*sent)[i].parameters.scale);
      }
    }
  }
}

TEST_F(SharedMemoryTest, TheChecksumIsChecked) {
  ClientOptions options = Through(path_);
  options.checksum = true;
  auto session = Connect(AddressOf(*server_), options)
                     .BindModel(Request("level", kLevel, {"a", "b", "c"}, 3, kColumns));
  ASSERT_TRUE(session.ok());
  EXPECT_EQ(Masks(*session, Tensors()).size(), 3u);
  EXPECT_GT(server_->shared_bytes(), 0);
}

TEST_F(SharedMemoryTest, RegionsAreReused) {
  const Session session = Bind(path_, "naive", kBits);
  ASSERT_TRUE(AllOrError(session.QuantizeWeight(Tensors())).ok());
  const int64_t bytes = server_->shared_bytes();
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(AllOrError(session.QuantizeWeight(Tensors())).ok());
  EXPECT_EQ(server_->shared_bytes(), bytes);
  EXPECT_EQ(server_->shm_connections(), 1);
}

TEST_F(SharedMemoryTest, NothingIsLeftOfAClientThatIsGone) {
  {
    const Session session = Bind(path_, "level", kLevel);
    Masks(session, Tensors());
    EXPECT_GT(server_->shared_bytes(), 0);
  }
  EXPECT_TRUE(Eventually([&] { return server_->shared_bytes() == 0; }));
}

TEST_F(SharedMemoryTest, ThreadsShareAClient) {
  const auto network = Masks(Bind("", "level", kLevel), Tensors());
  const Client client = Connect(AddressOf(*server_), Through(path_));
  std::vector<std::thread> threads;
  for (int i = 0; i < 12; ++i) {  // more than there are arenas
    threads.emplace_back([&] {
      const auto session = client.BindModel(Request("level", kLevel, {"a", "b", "c"}, 3, kColumns));
      ASSERT_TRUE(session.ok()) << session.status();
      EXPECT_TRUE(Same(Masks(*session, Tensors()), network));
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(SharedMemoryTest, AfterAnErrorTheMemoryIsNotUsedAgain) {
  const Session session = Bind(path_, "level", kLevel);
  CallOptions wrong;
  wrong.epoch = 7;
  for (const auto& mask : session.CalcMask(Tensors(), wrong)) {
    EXPECT_EQ(mask.status().code(), absl::StatusCode::kFailedPrecondition);
  }
  EXPECT_TRUE(Eventually([&] { return server_->shared_bytes() == 0; }));
  EXPECT_EQ(Masks(session, Tensors()).size(), 3u);
  EXPECT_GT(server_->shared_bytes(), 0);
}

TEST_F(SharedMemoryTest, WithoutASocketTensorsGoOverTheNetwork) {
  const auto network = Masks(Bind("", "level", kLevel), Tensors());
  EXPECT_TRUE(Same(Masks(Bind(NewPath(), "level", kLevel), Tensors()), network));
  EXPECT_TRUE(Same(Masks(Bind(std::string(300, 'x'), "level", kLevel), Tensors()), network));
}

TEST_F(SharedMemoryTest, ASocketThatTheServerOffersIsFoundByTheAddress) {
  const std::string folder = NewPath();
  ASSERT_EQ(mkdir(folder.c_str(), 0700), 0);
  setenv("XDG_RUNTIME_DIR", folder.c_str(), 1);
  server::ServerOptions options;
  options.shm_socket.automatic = true;
  const auto offering = StartServer(0, options);
  const auto bind = [&](const ClientOptions& through) {
    auto session = Connect(AddressOf(*offering), through)
                       .BindModel(Request("level", kLevel, {"a", "b", "c"}, 3, kColumns));
    EXPECT_TRUE(session.ok()) << session.status();
    return *std::move(session);
  };
  const Session network = bind(Through(""));
  const auto masks = Masks(network, Tensors());
  EXPECT_EQ(offering->shared_bytes(), 0);
  const Session shared = bind(ClientOptions());
  EXPECT_TRUE(Same(Masks(shared, Tensors()), masks));
  EXPECT_GT(offering->shared_bytes(), 0);
  unsetenv("XDG_RUNTIME_DIR");
  std::filesystem::remove_all(folder);
}

TEST_F(SharedMemoryTest, AServerThatAdmitsNobodyIsUsedOverTheNetwork) {
  server::ServerOptions options = With(NewPath());
  options.shm_socket.uids = {geteuid() + 1};
  const auto strict = StartServer(0, options);
  const Session session = Bind(options.shm_socket.path, "level", kLevel, *strict);
  EXPECT_EQ(Masks(session, Tensors()).size(), 3u);
  EXPECT_EQ(strict->shared_bytes(), 0);
}

TEST_F(SharedMemoryTest, AnotherServersSocketIsNoticed) {
  const auto other = StartServer();
  const Session session = Bind(path_, "level", kLevel, *other);
  EXPECT_EQ(Masks(session, Tensors()).size(), 3u);
  EXPECT_TRUE(Eventually([&] { return server_->shared_bytes() == 0; }));
}

TEST_F(SharedMemoryTest, ALayerThatDoesNotExistIsStillAnError) {
  const Session session = Bind(path_, "level", kLevel);
  std::vector<Tensor> tensors = Tensors();
  tensors[1].name = "unknown";
  const auto masks = session.CalcMask(tensors);
  EXPECT_TRUE(masks[0].ok());
  EXPECT_EQ(masks[1].status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(masks[2].ok());
  EXPECT_GT(server_->shared_bytes(), 0) << "the memory is not to blame";
}

TEST_F(SharedMemoryTest, ASmallServerTakesWhatFits) {
  server::ServerOptions options = With(NewPath());
  options.shm_socket.max_bytes = 4 << 20;  // half of it, where a weight takes 1.2 MB
  const auto small = StartServer(0, options);
  const auto network = Masks(Bind("", "level", kLevel), Tensors());
  const Session session = Bind(options.shm_socket.path, "level", kLevel, *small);
  EXPECT_TRUE(Same(Masks(session, Tensors()), network));
  EXPECT_EQ(small->shared_bytes(), 2 << 20);
}

}  // namespace
}  // namespace nni_compression
