// What the tests of the client share: a real server in this process, and weights.
#ifndef NNI_COMPRESSION_TESTS_CLIENT_CLIENT_TEST_BASE_H_
#define NNI_COMPRESSION_TESTS_CLIENT_CLIENT_TEST_BASE_H_

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "nni_compression/client.h"
#include "server/base/mutex.h"
#include "server/server.h"

namespace nni_compression {

// A config_list for "level".
inline constexpr char kLevel[] = R"([{"sparsity": 0.8, "op_types": ["default"]}])";

// Lets everybody in and remembers what route keys came with which method. Thread-safe.
class RecordingAuthenticator : public server::Authenticator {
 public:
  absl::StatusOr<server::Caller> Authenticate(const grpc::ServerContextBase& context,
                                              absl::string_view method) override;

  // "" stands for a call without a route key.
  std::map<std::string, std::set<std::string>> routes() const;

 private:
  mutable server::Mutex mutex_;
  std::map<std::string, std::set<std::string>> routes_ ABSL_GUARDED_BY(mutex_);
};

class ClientTestBase : public ::testing::Test {
 protected:
  // On the port given, or a free one.
  std::unique_ptr<server::Server> StartServer(int port = 0, server::ServerOptions options = {});

  static std::string AddressOf(const server::Server& server) {
    return absl::StrCat("127.0.0.1:", server.port());
  }

  // Fails the test when it cannot connect.
  static Client Connect(const std::string& address, const ClientOptions& options = {});

  // A request for layers named as given, of float32 [rows, columns], op_type Linear in PyTorch.
  static BindRequest Request(const std::string& algorithm, const std::string& config_list,
                             const std::vector<std::string>& names, int64_t rows, int64_t columns);

  // Distinct numbers of both signs, without magnitudes that tie; exact below 2^24 elements.
  static std::vector<float> Weight(int64_t elements, int seed);

  // Which elements are the k smallest by magnitude, of ties the first.
  static std::vector<bool> Smallest(const std::vector<float>& weight, int64_t k);
};

}  // namespace nni_compression

#endif  // NNI_COMPRESSION_TESTS_CLIENT_CLIENT_TEST_BASE_H_
