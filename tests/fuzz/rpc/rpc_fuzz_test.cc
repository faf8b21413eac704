// A structured fuzzer of the service, over its descriptor, against a server in this process. Each
// conversation follows from its seed: NNI_COMPRESSION_FUZZ_SEED=N runs that one alone, and
// NNI_COMPRESSION_FUZZ_SECONDS=N as many as there is time for, instead of a fixed number. The last
// seed in the log is the one under way.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "server/storage/memory_storage.h"
#include "tests/fuzz/rpc/conversation.h"
#include "tests/testing/test_server.h"

namespace nni_compression::fuzz {
namespace {

namespace v1 = ::nni::compression::v1;

using testing::TestServer;

constexpr uint64_t kConversations = 150;
// Those after which every call that a tenant may make has to have succeeded.
constexpr uint64_t kMostConversations = 20000;

// The calls that have not succeeded, of those that a tenant may make.
std::vector<std::string> Missing(const std::map<std::string, int>& succeeded) {
  std::vector<std::string> missing;
  const auto* service = MethodOf("BindModel").service();
  for (int i = 0; i < service->method_count(); ++i) {
    const std::string& method = service->method(i)->name();
    if (method != "ListTenants" && succeeded.count(method) == 0) missing.push_back(method);
  }
  return missing;
}
constexpr uint64_t kBetweenChecks = 10;

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  uint64_t value = otherwise;
  if (text != nullptr) {
    EXPECT_TRUE(absl::SimpleAtoi(text, &value)) << name << "=" << text;
  }
  return value;
}

// Somebody who trains meanwhile, and must not notice.
class Witness {
 public:
  explicit Witness(grpc::GenericStub& stub) : stub_(stub) {
    id_ = BindLevel();
    before_ = Mask(id_);
  }

  void Look() {
    EXPECT_EQ(Mask(id_), before_);
    const std::string id = BindLevel();
    EXPECT_EQ(Mask(id), before_);
    v1::CloseSessionRequest close;
    close.set_session_id(id);
    EXPECT_TRUE(Call(stub_, MethodOf("CloseSession"), kTenant, {&close}).status.ok());
  }

 private:
  static constexpr char kTenant[] = "witness";

  std::string BindLevel() {
    const auto request = testing::BindRequest("level", {{"sparsity", 0.5}}, {{"w", {4, 4}}});
    const Exchange bound = Call(stub_, MethodOf("BindModel"), kTenant, {&request});
    EXPECT_TRUE(bound.status.ok()) << bound.status.error_message();
    return static_cast<const v1::BindModelResponse&>(*bound.replies.at(0)).session_id();
  }

  // Of the weights 1 to 16 the smaller half goes.
  std::string Mask(const std::string& id) {
    std::vector<float> weights;
    for (int i = 1; i <= 16; ++i) weights.push_back(static_cast<float>(i));
    testing::MaskMessage message;
    message.Open(id).Tensor(testing::Header(0, "w", {4, 4}), testing::Bytes(weights));
    const Exchange answered = Call(stub_, MethodOf("CalcMask"), kTenant, {&message.proto()});
    EXPECT_TRUE(answered.status.ok()) << answered.status.error_message();
    v1::CalcMaskResponse all;
    for (const auto& reply : answered.replies) {
      all.MergeFrom(static_cast<const v1::CalcMaskResponse&>(*reply));
    }
    const std::string mask = testing::PayloadOf(all, 0);
    EXPECT_EQ(mask, std::string("\x00\xff", 2));
    return mask;
  }

  grpc::GenericStub& stub_;
  std::string id_;
  std::string before_;
};

struct Setup {
  const char* name;
  int64_t cache_bytes;
  bool storage;
};

class RpcFuzzTest : public ::testing::TestWithParam<Setup> {};

TEST_P(RpcFuzzTest, NoConversationDoesHarm) {
  server::ServerOptions options;
  options.authenticator = testing::TenantFromMetadata();
  options.cache_budget = GetParam().cache_bytes;
  options.memory_budget = 64 << 20;
  // Reports of ended sessions are memory, too.
  options.sessions.report_retention = absl::Seconds(1);
  if (GetParam().storage) options.storage = std::make_shared<server::MemoryStorage>();
  TestServer server(options);
  grpc::GenericStub stub(grpc::CreateChannel(absl::StrCat("127.0.0.1:", server.server().port()),
                                             grpc::InsecureChannelCredentials()));
  Witness witness(stub);
  const int64_t reserved = server.server().memory_reserved();

  uint64_t seed = FromEnvironment("NNI_COMPRESSION_FUZZ_SEED", 0);
  const bool one = seed != 0;
  const auto seconds = std::chrono::seconds(FromEnvironment("NNI_COMPRESSION_FUZZ_SECONDS", 0) / 2);
  const auto end = std::chrono::steady_clock::now() + seconds;
  std::map<std::string, int> succeeded;
  uint64_t done = 0;
  do {
    if (!one) ++seed;
    ++done;
    alarm(300);  // the watchdog's bound is for one conversation, as there may be hours of them
    std::fprintf(stderr, "%s: NNI_COMPRESSION_FUZZ_SEED=%llu\n", GetParam().name,
                 static_cast<unsigned long long>(seed));
    SCOPED_TRACE(absl::StrCat("NNI_COMPRESSION_FUZZ_SEED=", seed));
    Conversation conversation(stub, seed, &succeeded);
    conversation.Run();
    const int64_t cached = GetParam().cache_bytes;
    EXPECT_TRUE(testing::Eventually([&] {
      conversation.CloseAll();
      server.Advance(absl::Seconds(2));
      const int64_t memory = server.server().memory_reserved() - reserved;
      return server.server().live_sessions() == 1 && (cached == 0 ? memory == 0 : memory <= cached);
    })) << server.server().live_sessions()
        << " sessions, memory is " << server.server().memory_reserved() << ", was " << reserved;
    if (done % kBetweenChecks == 0) witness.Look();
    if (HasFailure()) break;  // the first is what somebody has to look at
  } while (!one && ((seconds.count() > 0 ? std::chrono::steady_clock::now() < end
                                         : done < kConversations) ||
                    (done < kMostConversations && !Missing(succeeded).empty())));
  witness.Look();
  std::fprintf(stderr, "%s: %llu conversations\n", GetParam().name,
               static_cast<unsigned long long>(done));
  for (const auto& [method, times] : succeeded)
    std::fprintf(stderr, "  %s: %d\n", method.c_str(), times);
  if (one) return;
  EXPECT_THAT(Missing(succeeded), ::testing::IsEmpty()) << "they get past the first check";
}

INSTANTIATE_TEST_SUITE_P(Servers, RpcFuzzTest,
                         ::testing::Values(Setup{"Plain", 0, false},
                                           Setup{"Cached", 1 << 20, true}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace nni_compression::fuzz
