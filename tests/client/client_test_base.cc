#include "tests/client/client_test_base.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numeric>
#include <utility>

namespace nni_compression {

absl::StatusOr<server::Caller> RecordingAuthenticator::Authenticate(
    const grpc::ServerContextBase& context, absl::string_view method) {
  std::string route;
  const auto& metadata = context.client_metadata();
  if (const auto found = metadata.find("nni-route"); found != metadata.end()) {
    route.assign(found->second.data(), found->second.size());
  }
  const std::string name(method.substr(method.rfind('/') + 1));
  server::MutexLock lock(&mutex_);
  routes_[name].insert(route);
  return server::Caller{"default"};
}

std::map<std::string, std::set<std::string>> RecordingAuthenticator::routes() const {
  server::MutexLock lock(&mutex_);
  return routes_;
}

std::unique_ptr<server::Server> ClientTestBase::StartServer(int port,
                                                            server::ServerOptions options) {
  options.listen = absl::StrCat("127.0.0.1:", port);
  auto server = server::Server::Start(options);
  if (!server.ok()) {
    ADD_FAILURE() << server.status();
    std::abort();
  }
  return *std::move(server);
}

Client ClientTestBase::Connect(const std::string& address, const ClientOptions& options) {
  auto client = Client::Connect(address, options);
  if (!client.ok()) {
    ADD_FAILURE() << client.status();
    std::abort();
  }
  return *std::move(client);
}

BindRequest ClientTestBase::Request(const std::string& algorithm, const std::string& config_list,
                                    const std::vector<std::string>& names, int64_t rows,
                                    int64_t columns) {
  BindRequest request;
  request.algorithm = algorithm;
  request.config_list = config_list;
  request.framework = "pytorch";
  for (const std::string& name : names) {
    Layer layer;
    layer.name = name;
    layer.op_type = "Linear";
    layer.shape = {rows, columns};
    request.layers.push_back(std::move(layer));
  }
  return request;
}

std::vector<float> ClientTestBase::Weight(int64_t elements, int seed) {
  // Multiplication by an odd number permutes the numbers below a power of two.
  int64_t range = 1;
  while (range < elements) range *= 2;
  std::vector<float> weight;
  weight.reserve(elements);
  for (int64_t i = 0; static_cast<int64_t>(weight.size()) < elements; ++i) {
    const int64_t magnitude = (i * 40503 + seed * 7919) & (range - 1);
    weight.push_back(static_cast<float>(magnitude + 1) * (i % 3 == 0 ? -1.0f : 1.0f));
  }
  return weight;
}

std::vector<bool> ClientTestBase::Smallest(const std::vector<float>& weight, int64_t k) {
  std::vector<int64_t> order(weight.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  std::nth_element(order.begin(), order.begin() + k, order.end(), [&](int64_t a, int64_t b) {
    return std::pair(std::fabs(weight[a]), a) < std::pair(std::fabs(weight[b]), b);
  });
  std::vector<bool> smallest(weight.size());
  for (int64_t i = 0; i < k; ++i) smallest[order[i]] = true;
  return smallest;
}

}  // namespace nni_compression
