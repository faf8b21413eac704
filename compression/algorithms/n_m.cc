// N:M sparsity (Mishra et al. 2021): of m consecutive input channels the n largest magnitudes are
// kept, wherever else in the weight they are; once.
//
//   Linear, [out, in]: along rows. Convolution, [out, in, kh, kw]: for each out, kh and kw.
//
// The last group, where m does not divide the channels, keeps min(n, its size).
#include "compression/kernels/n_m.h"

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compression/algorithms/algorithm.h"
#include "compression/kernels/finite.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {
namespace {

constexpr char kN[] = "n";
constexpr char kM[] = "m";
// In LayerState::memory if the trainer has set a mask that keeps too many.
constexpr char kDense[] = "dense";

// A weight of one dimension has them along it.
Channels InputsOf(const Layer& layer) {
  return Channels::Of(layer.shape, layer.input_axis().value_or(0));
}

class NMPruner : public Pruner {
 public:
  NMPruner(int64_t n, int64_t m) : n_(n), m_(m) {}

  bool IsStale(const Layer&, const LayerState& state, Clock) const override {
    return state.memory.count(kDense) > 0;
  }

  absl::Status Adopt(const Layer& layer, LayerState& state, Clock) const override {
    state.memory.clear();
    if (!HasNOfM(state.mask->bits().data(), InputsOf(layer), n_, m_)) state.memory[kDense] = {};
    return absl::OkStatus();
  }

  absl::StatusOr<Mask> CalcMask(const Layer& layer, const Weight& weight, LayerState& state,
                                Clock) const override {
    const void* const data = weight.values.data_ptr();
    if (!AllFinite(layer.dtype, data, layer.elements)) return NonFiniteError(layer, data);
    state.memory.clear();
    const Buffer flags = Buffer::Allocate(layer.elements);
    Buffer bits = Buffer::Allocate(ByteLength(DataType::kBit, layer.elements));
    KeepNOfM(layer.dtype, data, InputsOf(layer), n_, m_,
             state.mask ? state.mask->bits().data() : nullptr, flags.data(), bits.data());
    return Mask::FromBits(std::move(bits), layer.elements);
  }

  std::optional<double> TargetSparsity(Clock) const override {
    return 1 - static_cast<double>(n_) / static_cast<double>(m_);
  }

  int64_t work_bytes(const Layer& layer) const override { return layer.elements; }

 private:
  const int64_t n_;
  const int64_t m_;
};

OptionSpec Count(const char* name, int64_t default_value, int64_t minimum, const char* text) {
  OptionSpec spec;
  spec.name = name;
  spec.type = OptionType::kInteger;
  spec.default_value = default_value;
  spec.minimum = static_cast<double>(minimum);
  spec.maximum = kMaxM;
  spec.description = text;
  return spec;
}

}  // namespace

AlgorithmInfo NMAlgorithm() {
  AlgorithmInfo info;
  info.name = "n_m";
  info.kind = AlgorithmKind::kPruner;
  info.summary = "Keeps the n largest of m consecutive input channels, which sparse kernels use.";
  info.reference =
      "Mishra et al., Accelerating Sparse Deep Neural Networks, 2021, "
      "https://arxiv.org/abs/2104.08378";
  info.options = {Count(kN, 2, 1, "How many of m consecutive input channels are kept; at most m."),
                  Count(kM, 4, 2, "Of how many.")};
  info.example = {{kN, 2}, {kM, 4}};
  info.create = [](const Options& options) -> absl::StatusOr<std::unique_ptr<Compressor>> {
    const int64_t n = options.Integer(kN);
    const int64_t m = options.Integer(kM);
    if (n > m) {
      return absl::InvalidArgumentError(absl::StrCat(options.path(), ".", kN, " is ", n,
                                                     "; it must be in [1, ", m, "], up to ", kM));
    }
    return std::make_unique<NMPruner>(n, m);
  };
  info.leaves_out = [](const Options& options, const Layer& layer) -> std::string {
    const int64_t m = options.Integer(kM);
    const int64_t inputs = InputsOf(layer).channels;
    if (inputs >= m) return "";
    return absl::StrCat("its weight has ", inputs, " input channels; it must have at least ", kM,
                        ", ", m);
  };
  return info;
}

}  // namespace nni_compression::compression
