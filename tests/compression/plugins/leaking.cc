// A plugin whose algorithm never lets go of memory nor of descriptors: the soak has to notice.
#include <fcntl.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "compression/plugin.h"

namespace nni_compression::compression {
namespace {

constexpr size_t kBytes = 4 << 20;  // a call

class LeakingPruner : public Pruner {
 public:
  absl::StatusOr<Mask> CalcMask(const Layer& layer, const Weight&, LayerState&,
                                Clock) const override {
    static std::mutex mutex;
    static auto* const kept = new std::vector<std::string>;
    std::lock_guard<std::mutex> lock(mutex);
    kept->emplace_back(kBytes, 'x');
    open("/dev/null", O_RDONLY | O_CLOEXEC);
    return Mask::Ones(layer.elements);
  }
};

AlgorithmInfo LeakingAlgorithm() {
  AlgorithmInfo info;
  info.name = "leaking";
  info.kind = AlgorithmKind::kPruner;
  info.summary = "For tests.";
  info.example = nlohmann::json::object();
  info.create = [](const Options&) -> absl::StatusOr<std::unique_ptr<Compressor>> {
    return std::make_unique<LeakingPruner>();
  };
  return info;
}

}  // namespace
}  // namespace nni_compression::compression

NNI_COMPRESSION_PLUGIN() { return {nni_compression::compression::LeakingAlgorithm()}; }
