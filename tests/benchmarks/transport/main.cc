// Figures of the transport that a C++ trainer sees, against the least that gRPC could do:
//
//   transport_benchmark serve                   a bare server; prints its port, ends with its stdin
//   transport_benchmark upload BARE SERVICE     a large tensor
//   transport_benchmark small BARE SERVICE      LeNet's layers, and UpdateEpoch
//   transport_benchmark load SERVICE            many sessions, many trainers
//   transport_benchmark huge SERVICE            one tensor of 4 GB
//   transport_benchmark ways CA SERVICE TLS...  the same again and again, and UpdateEpoch, at all
//                                               addresses; all but the first are encrypted, and CA
//                                               is a file: who signs their certificates
//
// BARE, SERVICE and TLS are addresses. Prints one JSON object: a list of seconds for each
// contender.
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/random/random.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "nni_compression/client.h"
#include "tests/benchmarks/transport/bare_client.h"
#include "tests/benchmarks/transport/bare_server.h"

namespace nni_compression::benchmarks {
namespace {

constexpr int kRounds = 9;
constexpr char kRule[] = R"([{"sparsity": 0.8, "op_types": ["default"]}])";

struct Model {
  std::vector<Layer> layers;
  std::vector<Tensor> tensors;
};

void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

template <typename T>
T Must(absl::StatusOr<T> value) {
  Check(value.status());
  return *std::move(value);
}

void Add(Model& model, const std::string& name, const std::vector<int64_t>& shape,
         absl::Span<const float> values) {
  Layer layer;
  layer.name = name;
  layer.op_type = "Linear";
  layer.shape = shape;
  model.layers.push_back(layer);
  model.tensors.push_back(MakeTensor(name, shape, values));
}

std::vector<float> Normal(int64_t count) {
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

// NNI's LeNet: 431,000 weights. `values` outlives the model.
Model LeNet(absl::Span<const float> values) {
  Model model;
  Add(model, "conv1", {20, 1, 5, 5}, values.first(500));
  Add(model, "conv2", {50, 20, 5, 5}, values.first(25'000));
  Add(model, "fc1", {500, 800}, values.first(400'000));
  Add(model, "fc2", {10, 500}, values.first(5'000));
  return model;
}

Session Bind(const Client& client, const Model& model, const char* algorithm = "level",
             const char* rule = kRule) {
  BindRequest request;
  request.algorithm = algorithm;
  request.config_list = rule;
  request.layers = model.layers;
  request.framework = "pytorch";
  return Must(client.BindModel(request));
}

void Masks(const Session& session, const Model& model) {
  for (const auto& mask : session.CalcMask(model.tensors)) Check(mask.status());
}

double Seconds(const std::function<void()>& call) {
  const absl::Time start = absl::Now();
  call();
  return absl::ToDoubleSeconds(absl::Now() - start);
}

// The contenders take turns; the first round does not count. `repeat`: calls a figure is the mean
// of, for short ones.
nlohmann::json Alternate(
    const std::vector<std::pair<std::string, std::function<double()>>>& contenders,
    int rounds = kRounds) {
  nlohmann::json times = nlohmann::json::object();
  for (int round = -1; round < rounds; ++round) {
    for (const auto& [name, call] : contenders) {
      const double taken = call();
      if (round >= 0) times[name].push_back(taken);
    }
  }
  return times;
}

void Serve() {
  const BareServer server;
  std::printf("%d\n", server.port());
  std::fflush(stdout);
  while (std::getchar() != EOF) {
  }
}

nlohmann::json Upload(const std::string& bare_address, const std::string& address) {
  const std::vector<float> values = Normal(45'000'000);
  Model model;
  Add(model, "w", {45'000'000}, values);
  BareClient bare(bare_address);
  const Client client = Must(Client::Connect(address));
  const Session session = Bind(client, model);
  // The first weight decides the mask; those that follow are received and not looked at.
  Masks(session, model);
  return Alternate({
      {"bare", [&] { return Seconds([&] { bare.Upload(model.tensors[0].bytes); }); }},
      {"service", [&] { return Seconds([&] { Masks(session, model); }); }},
  });
}

nlohmann::json Small(const std::string& bare_address, const std::string& address) {
  constexpr int kRepeat = 50;
  const std::vector<float> values = Normal(400'000);
  const Model model = LeNet(values);
  const std::vector<uint8_t> as_many(4 * 430'500);
  BareClient bare(bare_address);
  const Client client = Must(Client::Connect(address));
  int64_t epoch = 0;
  const Session agp = Bind(client, model, "agp",
                           R"([{"final_sparsity": 0.8, "end_epoch": 1000000000,
                                "op_types": ["default"]}])");
  const auto mean = [](const std::function<double()>& call) {
    return [call] {
      std::vector<double> times(kRepeat);
      for (double& time : times) time = call();
      std::nth_element(times.begin(), times.begin() + kRepeat / 2, times.end());
      return times[kRepeat / 2];
    };
  };
  return Alternate({
      {"bare stream", mean([&] { return Seconds([&] { bare.Upload(as_many); }); })},
      {"CalcMask", mean([&] {
         const Session session = Bind(client, model);
         const double taken = Seconds([&] { Masks(session, model); });
         Check(session.Close());
         return taken;
       })},
      {"bare unary", mean([&] { return Seconds([&] { bare.Unary(64); }); })},
      {"UpdateEpoch", mean([&] { return Seconds([&] { Must(agp.UpdateEpoch(++epoch)); }); })},
  });
}

// The latencies of small calls: alone, and with many trainers at once beside many idle sessions.
nlohmann::json Load(const std::string& address) {
  constexpr int kSessions = 1000;
  constexpr int kTrainers = 64;
  constexpr int kCalls = 50;
  constexpr absl::Duration kTraining = absl::Milliseconds(200);
  const std::vector<float> values = Normal(400'000);
  const Model model = LeNet(values);
  const Client client = Must(Client::Connect(address));
  std::printf("{\"phase\": \"begin\"}\n");
  std::fflush(stdout);
  std::getchar();
  std::vector<Session> sessions;
  sessions.reserve(kSessions);
  for (int i = 0; i < kSessions; ++i) sessions.push_back(Bind(client, model));
  for (const Session& session : sessions) Masks(session, model);
  std::printf("{\"phase\": \"idle\"}\n");
  std::fflush(stdout);
  std::getchar();

  nlohmann::json times;
  // `pause`: what a trainer does between two calls, on average.
  const auto train = [&](const Client& trainer, absl::Duration pause) {
    std::vector<double> taken;
    absl::BitGen random;
    for (int i = 0; i < kCalls; ++i) {
      absl::SleepFor(pause * absl::Uniform(random, 0.0, 2.0));
      const Session session = Bind(trainer, model);
      taken.push_back(Seconds([&] { Masks(session, model); }));
      Check(session.Close());
    }
    return taken;
  };
  const auto together = [&](int count, absl::Duration pause) {
    std::vector<std::vector<double>> taken(count);
    std::vector<std::thread> trainers;
    for (auto& mine : taken) {
      trainers.emplace_back([&] { mine = train(Must(Client::Connect(address)), pause); });
    }
    for (std::thread& trainer : trainers) trainer.join();
    nlohmann::json all = nlohmann::json::array();
    for (const auto& mine : taken) {
      for (const double time : mine) all.push_back(time);
    }
    return all;
  };
  times["alone"] = together(1, absl::ZeroDuration());
  times["training"] = together(kTrainers, kTraining);
  times["saturated"] = together(kTrainers, absl::ZeroDuration());
  for (const Session& session : sessions) Check(session.Close());
  return times;
}

// 4 GB. Two pages of numbers again and again would do for the transport, not for the algorithm.
std::vector<float> Enormous() {
  std::vector<float> values(size_t{1} << 30);
  uint64_t state = 1;
  for (float& value : values) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    value = static_cast<float>(static_cast<int32_t>(state >> 32)) * 0x1p-31f;
  }
  return values;
}

nlohmann::json Huge(const std::string& address) {
  const std::vector<float> values = Enormous();
  Model model;
  Add(model, "w", {static_cast<int64_t>(values.size())}, values);
  const Client client = Must(Client::Connect(address));
  const Session session = Bind(client, model);
  nlohmann::json times;
  times["service"].push_back(Seconds([&] { Masks(session, model); }));
  Check(session.Close());
  return times;
}

nlohmann::json Ways(const std::string& ca, const std::vector<std::string>& addresses) {
  constexpr int kHugeRounds = 5;
  constexpr int kSmallCalls = 200;
  const std::vector<float> values = Enormous();
  Model model;
  Add(model, "w", {static_cast<int64_t>(values.size())}, values);
  std::vector<std::pair<std::string, std::function<double()>>> uploads, epochs;
  for (const std::string& address : addresses) {
    ClientOptions options;
    options.tls.emplace().ca = ca;
    options.tls->enabled = address != addresses[0];
    const Client client = Must(Client::Connect(address, options));
    const Session session = Bind(client, model);
    // The first weight decides the mask; those that follow are received and not looked at.
    Masks(session, model);
    uploads.emplace_back(address, [=] { return Seconds([&] { Masks(session, model); }); });
    const Session agp = Bind(client, model, "agp",
                             R"([{"final_sparsity": 0.8, "end_epoch": 1000000000,
                                  "op_types": ["default"]}])");
    epochs.emplace_back(address, [agp, epoch = int64_t{0}]() mutable {
      return Seconds([&] { Must(agp.UpdateEpoch(++epoch)); });
    });
  }
  return {{"upload", Alternate(uploads, kHugeRounds)}, {"epoch", Alternate(epochs, kSmallCalls)}};
}

int Main(const std::vector<std::string>& arguments) {
  const std::string command = arguments.empty() ? "" : arguments[0];
  nlohmann::json times;
  if (command == "serve") {
    Serve();
    return 0;
  }
  if (command == "upload" && arguments.size() == 3) {
    times = Upload(arguments[1], arguments[2]);
  } else if (command == "small" && arguments.size() == 3) {
    times = Small(arguments[1], arguments[2]);
  } else if (command == "load" && arguments.size() == 2) {
    times = Load(arguments[1]);
  } else if (command == "huge" && arguments.size() == 2) {
    times = Huge(arguments[1]);
  } else if (command == "ways" && arguments.size() > 2) {
    times = Ways(arguments[1], {arguments.begin() + 2, arguments.end()});
  } else {
    std::fprintf(stderr,
                 "usage: transport_benchmark serve | upload BARE SERVICE | small BARE SERVICE | "
                 "load SERVICE | huge SERVICE | ways CA SERVICE TLS...\n");
    return 2;
  }
  std::printf("%s\n", times.dump().c_str());
  return 0;
}

}  // namespace
}  // namespace nni_compression::benchmarks

int main(int argc, char** argv) {
  return nni_compression::benchmarks::Main(std::vector<std::string>(argv + 1, argv + argc));
}
