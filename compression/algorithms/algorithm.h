// What an algorithm is. A new one is a file in this folder with a class that overrides one method,
// an AlgorithmInfo, and a line in registry.cc: see docs/adding-an-algorithm.md.
#ifndef NNI_COMPRESSION_COMPRESSION_ALGORITHMS_ALGORITHM_H_
#define NNI_COMPRESSION_COMPRESSION_ALGORITHMS_ALGORITHM_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compression/algorithms/options.h"
#include "compression/algorithms/weight_error.h"  // what it answers to one that is not finite
#include "compression/tensors/mask.h"
#include "compression/tensors/weight.h"
#include "compression/types/layer.h"
#include "compression/types/quantization.h"

namespace nni_compression::compression {

// Where training is: absolute counters that the trainer sets.
struct Clock {
  int64_t epoch = 0;
  int64_t step = 0;
};

// All that is remembered about a layer between calls. The session owns it, saves and loads it;
// algorithms themselves hold nothing but their options, so an answer depends on the arguments
// alone.
struct LayerState {
  bool answered = false;     // a result was handed out, or a mask was given by the trainer
  std::optional<Mask> mask;  // in force; nothing: all kept. Quantizers: given by the trainer
  std::optional<QuantizationParameters> parameters;  // quantizers: of the last answer
  std::map<std::string, std::vector<float>> memory;  // whatever else an algorithm needs
  std::string opaque;  // the same in a form that the algorithm alone understands

  // Elements of the mask that are pruned; 0 without a mask.
  int64_t pruned() const { return mask ? mask->pruned() : 0; }
};

// Numbers in LayerState::memory that can be told a trainer, and be given back by it to another
// session. Scales are one number that is not negative, ranges a minimum and a maximum; all finite.
struct Remembered {
  enum class Kind { kScale, kRange };
  std::string name;
  Kind kind = Kind::kScale;
};

// When a client has to ask again for a layer.
enum class Refresh { kOnce = 1, kWhenStale = 2, kOnWeightChange = 3 };

// Base of every algorithm. One instance serves one rule of a session, so its options arrive in the
// constructor. Immutable after construction; thread-safe. Methods get a checked Weight.
// Methods may throw c10::Error; the session turns it into a status.
class Compressor {
 public:
  virtual ~Compressor() = default;

  virtual Refresh refresh() const = 0;

  // Whether UpdateEpoch or Step can change an answer.
  virtual bool needs_epoch() const { return false; }
  virtual bool needs_step() const { return false; }

  // Whether a layer that was answered before would now be answered differently. `state.answered`
  // is true.
  virtual bool IsStale(const Layer& layer, const LayerState& state, Clock clock) const {
    return false;
  }

  // What of `LayerState::memory` a session that goes on from a trainer's checkpoint has to have.
  virtual std::vector<Remembered> remembered() const { return {}; }

  // Whether there may be more in `state.memory` than that, or anything in `state.opaque`, so that
  // such a session does not answer as the one that the checkpoint is of.
  virtual bool remembers_more() const { return false; }

  // Whether Step should carry the loss's gradient of each layer's weight.
  virtual bool wants_gradient() const { return false; }

  // Takes note, in `state`, of a gradient, which has the weight's dtype and shape and dies with the
  // call. Called only when wants_gradient().
  virtual absl::Status AddGradient(const Layer& layer, const at::Tensor& gradient, Clock clock,
                                   LayerState& state) const {
    return absl::UnimplementedError("the algorithm has no use for gradients");
  }
};

class Pruner : public Compressor {
 public:
  Refresh refresh() const override { return Refresh::kOnce; }

  // The mask of a stale layer. `state.mask` holds what was pruned before; a call for a layer that
  // is not stale never gets here. May write `state.memory` and `state.opaque`, which the session
  // keeps only when the call succeeds. Fails with INVALID_ARGUMENT for a non-finite weight, naming
  // the first bad flat index.
  virtual absl::StatusOr<Mask> CalcMask(const Layer& layer, const Weight& weight, LayerState& state,
                                        Clock clock) const = 0;

  // The share to be removed at this time, in [0, 1], for reports.
  virtual std::optional<double> TargetSparsity(Clock clock) const { return std::nullopt; }
};

class Quantizer : public Compressor {
 public:
  Refresh refresh() const override { return Refresh::kOnWeightChange; }

  // Codes or values, and the parameters, of a weight. May write `state.memory` and `state.opaque`,
  // which the session keeps only when the call succeeds. Fails with INVALID_ARGUMENT for a
  // non-finite weight.
  virtual absl::StatusOr<QuantizedWeight> QuantizeWeight(const Layer& layer, const Weight& weight,
                                                         QuantizeReply reply, Clock clock,
                                                         LayerState& state) const = 0;

  // Whether the parameters follow from the weight's range alone, so that a trainer that rounds for
  // itself needs to send no more than that.
  virtual bool accepts_range() const { return false; }

  // Whether Step should carry the range when a trainer rounds for itself: the parameters depend on
  // it.
  virtual bool wants_range_in_step() const { return false; }

  // The dimension whose slices have their own range; nothing: one range per tensor.
  virtual std::optional<int> channel_axis(const Layer& layer) const { return std::nullopt; }

  // How many consecutive weights of a channel have their own range; 0: all of them. Otherwise
  // channel_axis() is 0, and the size divides what a channel has.
  virtual int64_t group_size() const { return 0; }

  // Ranges, and hence scales, that the layer has: of groups, channels, or one.
  int64_t channels(const Layer& layer) const {
    if (group_size() > 0) return layer.elements / group_size();
    const std::optional<int> axis = channel_axis(layer);
    const bool fits = axis && *axis >= 0 && *axis < static_cast<int>(layer.shape.size());
    return fits ? layer.shape[*axis] : 1;
  }

  // As QuantizeWeight with QuantizeReply::kParameters for a weight with this range, bit for bit.
  // Called only when accepts_range().
  virtual absl::StatusOr<QuantizedWeight> QuantizeRange(const Layer& layer, const Range& range,
                                                        Clock clock, LayerState& state) const {
    return absl::UnimplementedError("the algorithm needs the whole weight");
  }

  // Of a weight's code. 0: the algorithm leaves weights as they are.
  virtual int bits() const = 0;

  // The activations whose range Step should carry.
  virtual std::vector<Activation> activations() const { return {}; }

  // Takes in the range that the trainer saw since the last step: finite, one minimum and maximum.
  // Writes `state.memory`. Called only for activations().
  virtual absl::Status ObserveActivation(Activation activation, const Range& range,
                                         LayerState& state) const {
    return absl::UnimplementedError("the algorithm does not quantize activations");
  }

  // What follows from the ranges seen so far. Called only for activations().
  virtual absl::StatusOr<ActivationAnswer> QuantizeActivation(Activation activation, Clock clock,
                                                              const LayerState& state) const {
    return absl::UnimplementedError("the algorithm does not quantize activations");
  }
};

enum class AlgorithmKind { kPruner = 1, kQuantizer = 2 };

// An algorithm's entry in the registry.
struct AlgorithmInfo {
  std::string name;  // "level"
  AlgorithmKind kind = AlgorithmKind::kPruner;
  std::string summary;    // one sentence
  std::string reference;  // the paper
  std::vector<OptionSpec> options;
  nlohmann::json example;  // a rule that works, without op_types; the contract suite binds it
  std::string source;      // the file that it was loaded from; empty: built in

  // Builds a Pruner or a Quantizer, as `kind` says. INVALID_ARGUMENT for options that are each
  // fine and contradict one another; messages begin with options.path().
  std::function<absl::StatusOr<std::unique_ptr<Compressor>>(const Options& options)> create;

  // Optional: whether the rule can be applied to this layer at all.
  std::function<absl::Status(const Options& options, const Layer& layer)> check_layer;
};

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_ALGORITHMS_ALGORITHM_H_
