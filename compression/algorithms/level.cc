// Level pruner: removes the trunc(n * sparsity) smallest weights of each layer by (|w|, index), as
// they are when the layer is first seen, and keeps that mask for the session.
#include <memory>
#include <optional>

#include "compression/algorithms/magnitude_pruner.h"

namespace nni_compression::compression {
namespace {

class LevelPruner : public MagnitudePruner {
 public:
  explicit LevelPruner(double sparsity) : sparsity_(sparsity) {}

  std::optional<double> TargetSparsity(Clock) const override { return sparsity_; }

 protected:
  std::optional<double> SparsityNow(Clock) const override { return sparsity_; }

 private:
  const double sparsity_;
};

}  // namespace

AlgorithmInfo LevelAlgorithm() {
  AlgorithmInfo info;
  info.name = "level";
  info.kind = AlgorithmKind::kPruner;
  info.summary = "Removes a fixed share of each layer's smallest weights, once.";
  OptionSpec sparsity;
  sparsity.name = "sparsity";
  sparsity.maximum = 1;
  sparsity.description = "Share of each layer's weights to remove.";
  info.options = {sparsity};
  info.example = {{"sparsity", 0.8}};
  info.create = [](const Options& options) -> absl::StatusOr<std::unique_ptr<Compressor>> {
    return std::make_unique<LevelPruner>(options.Number("sparsity"));
  };
  return info;
}

}  // namespace nni_compression::compression
