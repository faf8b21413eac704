// Prunes two layers to 80 % over four epochs with AGP, as a trainer would, and prints the masks'
// sparsity. The server's address is the first argument, else $NNI_COMPRESSION_SERVER.
#include <nni_compression/client.h>

#include <cstdint>
#include <iostream>
#include <random>
#include <string>
#include <vector>

namespace nc = nni_compression;

namespace {

std::vector<float> RandomWeight(int64_t elements) {
  static std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  std::vector<float> weight(elements);
  for (float& w : weight) w = normal(generator);
  return weight;
}

absl::Status Train(const nc::Session& session, const std::vector<nc::Layer>& layers) {
  std::vector<std::vector<float>> weights;
  for (const nc::Layer& layer : layers) {
    weights.push_back(RandomWeight(layer.shape[0] * layer.shape[1]));
  }
  for (int64_t epoch = 0; epoch <= 4; ++epoch) {
    const auto stale = session.UpdateEpoch(epoch);
    if (!stale.ok()) return stale.status();
    std::cout << "epoch " << epoch << ": " << stale->size() << " layers to renew\n";

    // Tensors are spans: the weights go from here to the socket without a copy, all in one stream.
    std::vector<nc::Tensor> tensors;
    for (size_t i = 0; i < layers.size(); ++i) {
      tensors.push_back(nc::MakeTensor<float>(layers[i].name, layers[i].shape, weights[i]));
    }
    for (const absl::StatusOr<nc::Mask>& mask : session.CalcMask(tensors)) {
      if (!mask.ok()) return mask.status();
      std::cout << "  " << mask->layer() << ": " << mask->pruned() << " of " << mask->elements()
                << " removed, first weight " << (mask->kept(0) ? "kept" : "removed") << "\n";
    }
    // ... train an epoch with weight * mask ...
  }
  return absl::OkStatus();
}

absl::Status Run(const std::string& address) {
  const auto client = nc::Client::Connect(address);
  if (!client.ok()) return client.status();

  nc::BindRequest request;
  request.algorithm = "agp";
  request.config_list = R"([{"final_sparsity": 0.8, "end_epoch": 4, "op_types": ["default"]}])";
  request.framework = "pytorch";
  request.layers = {{"fc1", "Linear", nc::DataType::kFloat32, {300, 784}},
                    {"fc2", "Linear", nc::DataType::kFloat32, {10, 300}}};
  const auto session = client->BindModel(request);
  if (!session.ok()) return session.status();
  for (const std::string& warning : session->plan().warnings()) {
    std::cerr << "warning: " << warning << "\n";
  }
  const absl::Status trained = Train(*session, request.layers);
  const absl::Status closed = session->Close();
  return trained.ok() ? closed : trained;
}

}  // namespace

int main(int argc, char** argv) {
  const absl::Status status = Run(argc > 1 ? argv[1] : "");
  if (!status.ok()) std::cerr << status << "\n";
  return status.ok() ? 0 : 1;
}
