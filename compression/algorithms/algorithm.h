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
#include "compression/algorithms/weight_error.h"  // what it answers to one that is not finite
#include "compression/options/options.h"
#include "compression/scopes/threshold_search.h"
#include "compression/statistics/statistic.h"
#include "compression/tensors/mask.h"
#include "compression/tensors/threshold.h"
#include "compression/tensors/weight.h"
#include "compression/types/layer.h"
#include "compression/types/quantization.h"

namespace nni_compression::compression {

// The position of training: absolute counters that the trainer sets.
struct Clock {
  int64_t epoch = 0;
  int64_t step = 0;
};

// In place of a mask: the trainer has it, and only counted its weights here.
struct CountedMask {
  Threshold threshold;   // decided
  uint32_t counted = 0;  // CRC-32 of the first round that it was decided from

  friend bool operator==(const CountedMask& a, const CountedMask& b) {
    return a.threshold == b.threshold && a.counted == b.counted;
  }
};

// The state of a layer between calls. The session owns, saves and loads it; algorithms hold only
// their options, so an answer depends on its arguments alone.
struct LayerState {
  bool answered = false;     // a result was returned, or the trainer set a mask
  std::optional<Mask> mask;  // in force; nullopt: all kept. Quantizers: set by the trainer
  std::optional<CountedMask> counted;                // in force; never with `mask`
  std::optional<QuantizationParameters> parameters;  // quantizers: those of the last answer
  std::map<std::string, std::vector<float>> memory;  // other state of the algorithm
  std::string opaque;                                // the same, in a format of the algorithm
  Statistics statistics;                             // of the trainer; algorithms only read them

  // Elements of the mask that are pruned; 0 without a mask.
  int64_t pruned() const { return mask ? mask->pruned() : counted ? counted->threshold.pruned : 0; }
};

// An entry of LayerState::memory that a trainer can save and pass to another session. A scale is
// one nonnegative number, a range a minimum and a maximum; all finite.
struct Remembered {
  enum class Kind { kScale, kRange };
  std::string name;
  Kind kind = Kind::kScale;
};

// When a client has to request a layer again.
enum class Refresh { kOnce = 1, kWhenStale = 2, kOnWeightChange = 3 };

// What Step can carry for an algorithm.
struct Observation {
  enum class Kind { kGradient, kOutputRange, kInputRange };
  Kind kind = Kind::kGradient;
  at::Tensor gradient;  // of the loss, with the weight's dtype and shape; valid during the call
  Range range;          // of the activations since the last step: finite, one minimum and maximum
};

inline Observation::Kind ObservationOf(Activation activation) {
  return activation == Activation::kOutput ? Observation::Kind::kOutputRange
                                           : Observation::Kind::kInputRange;
}

// What is constant over the life of a compressor.
struct Traits {
  Refresh refresh = Refresh::kOnce;  // of a Quantizer, kOnWeightChange

  // Whether UpdateEpoch or Step, apart from what Step carries, can change an answer.
  bool needs_epoch = false;
  bool needs_step = false;

  // The entries of `LayerState::memory` that a session needs to resume from a trainer's checkpoint.
  std::vector<Remembered> remembered;

  // Whether `LayerState::memory` may have other entries, or `LayerState::opaque` may be set, so
  // that a session resumed from a checkpoint may answer differently from the original.
  bool remembers_more = false;

  // What Step should carry for Observe; ranges of activations only for a Quantizer.
  std::vector<Observation::Kind> observes;

  // What the algorithm needs to know about a layer beyond its weight, each once. The session adds
  // up the parts that the trainer sends, in LayerState::statistics; a method that needs one that is
  // missing returns FAILED_PRECONDITION and names it.
  std::vector<StatisticKind> statistics;

  // Whether weights of one dimension need these, too.
  bool statistics_of_vectors = true;

  // What is applied to the outputs that are reduced to these.
  OutputActivation activation = OutputActivation::kNone;

  // Pruners. Whether all layers of the rule are decided about together, by CalcMasks. They are then
  // stale together: if one was never answered or IsStale, or all IsStaleTogether.
  bool joint = false;

  // Pruners. Whether filters go as a whole, so that layers of a dependency group (Layer::group) are
  // decided about together. A rule that has such layers is joint.
  bool takes_groups = false;

  // Pruners. Whether counts of magnitudes are enough to decide, so that a trainer need not send
  // weights.
  bool takes_counts = false;

  // Quantizers. Bits of a weight's code. 0: the algorithm does not change weights.
  int bits = 0;

  // Quantizers. Whether the parameters depend on the weight's range only, so that a trainer that
  // quantizes locally needs to send only the range.
  bool accepts_range = false;

  // Quantizers. Whether Step should carry the range when a trainer quantizes locally, since the
  // parameters depend on it.
  bool wants_range_in_step = false;

  // Quantizers. Whether the slices of dimension Layer::channel_axis have their own range; false:
  // one range per tensor.
  bool per_channel = false;

  // Quantizers. How many consecutive weights of a channel share a range; 0: all of them. Otherwise
  // per_channel is true, the layer's channel_axis is 0, and the size divides that of a channel.
  int64_t group_size = 0;
};

// Base of every algorithm. One instance serves one rule of a session, so its options arrive in the
// constructor, which sets the traits that are not the default. Immutable after construction;
// thread-safe. Methods get a checked Weight. Methods may throw c10::Error; the session turns it
// into a status.
class Compressor {
 public:
  virtual ~Compressor() = default;

  const Traits& traits() const { return traits_; }

  // Whether a layer that was answered before would now be answered differently. `state.answered`
  // is true.
  virtual bool IsStale(const Layer& layer, const LayerState& state, Clock clock) const {
    return false;
  }

  // Updates `state.memory` and `state.opaque`. Called only for what the traits observe.
  virtual absl::Status Observe(const Layer& layer, const Observation& observation, Clock clock,
                               LayerState& state) const {
    return absl::UnimplementedError("the algorithm observes nothing");
  }

  // Memory that a call needs for a layer beyond weight and answer.
  virtual int64_t work_bytes(const Layer& layer) const { return 0; }

 protected:
  Traits traits_;
};

// A layer and what the session remembers of it.
struct LayerInState {
  const Layer& layer;
  const LayerState& state;
};

// A layer of a rule that decides about all of its layers together: the arguments of CalcMask.
struct JointLayer {
  Layer layer;
  Weight weight;
  LayerState state;
};

class Pruner : public Compressor {
 public:
  // The mask of a stale layer; not called for others, nor in a joint rule. `state.mask` is the
  // previous mask. May write `state.memory` and `state.opaque`, which the session keeps only when
  // the call succeeds. INVALID_ARGUMENT, naming the first bad flat index, for a non-finite weight.
  virtual absl::StatusOr<Mask> CalcMask(const Layer& layer, const Weight& weight, LayerState& state,
                                        Clock clock) const = 0;

  // The trainer has set the mask of a layer, `state.mask`, as after a checkpoint: it counts as an
  // answer of this time. May write `state.memory` and `state.opaque`.
  virtual absl::Status Adopt(const Layer& layer, LayerState& state, Clock clock) const {
    return absl::OkStatus();
  }

  // As IsStale, of all layers of a joint rule, which were all answered before.
  virtual bool IsStaleTogether(absl::Span<const LayerInState> layers, Clock clock) const {
    return false;
  }

  // The masks of all layers of a joint rule, in their order. All or none of them, and
  // of their states, are kept.
  virtual absl::StatusOr<std::vector<Mask>> CalcMasks(std::vector<JointLayer>& layers,
                                                      Clock clock) const {
    return absl::UnimplementedError("the algorithm decides about each layer by itself");
  }

  // How many weights the layers of the rule, or the one layer unless joint, lose together; sets
  // their limits. Only if takes_counts, and as CalcMask and CalcMasks decide.
  virtual int64_t TotalToPrune(std::vector<CountedLayer>& layers, Clock clock) const { return 0; }

  // The target sparsity at this time, in [0, 1], for reports: of each layer or, if joint, of all
  // together.
  virtual std::optional<double> TargetSparsity(Clock clock) const { return std::nullopt; }
};

class Quantizer : public Compressor {
 public:
  Quantizer() { traits_.refresh = Refresh::kOnWeightChange; }

  // The codes or values of a weight, and its quantization parameters. May write `state.memory` and
  // `state.opaque`, which the session keeps only when the call succeeds. INVALID_ARGUMENT for a
  // non-finite weight.
  virtual absl::StatusOr<QuantizedWeight> QuantizeWeight(const Layer& layer, const Weight& weight,
                                                         QuantizeReply reply, Clock clock,
                                                         LayerState& state) const = 0;

  // The dimension whose slices have their own range; nullopt: one range per tensor.
  std::optional<int> channel_axis(const Layer& layer) const {
    return traits_.per_channel ? std::make_optional(layer.channel_axis) : std::nullopt;
  }

  // The number of ranges, and hence scales, of the layer: groups, channels, or one.
  int64_t channels(const Layer& layer) const {
    if (traits_.group_size > 0) return layer.elements / traits_.group_size;
    return traits_.per_channel ? layer.shape[layer.channel_axis] : 1;
  }

  // As QuantizeWeight with QuantizeReply::kParameters for a weight with this range, bit for bit.
  // Called only if accepts_range.
  virtual absl::StatusOr<QuantizedWeight> QuantizeRange(const Layer& layer, const Range& range,
                                                        Clock clock, LayerState& state) const {
    return absl::UnimplementedError("the algorithm needs the whole weight");
  }

  // The quantization parameters from the ranges observed so far. Called only for activations whose
  // range the traits observe.
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
  nlohmann::json example;  // a valid rule, without op_types; the contract suite binds it
  std::string source;      // the file that it was loaded from; empty: built in

  // Creates a Pruner or a Quantizer, according to `kind`. INVALID_ARGUMENT for options that are
  // valid separately but contradict each other; messages begin with options.path().
  std::function<absl::StatusOr<std::unique_ptr<Compressor>>(const Options& options)> create;

  // Optional: checks that the rule can be applied to this layer.
  std::function<absl::Status(const Options& options, const Layer& layer)> check_layer;

  // Optional: why the rule leaves the layer out, with a warning, as "its weight has ..."; empty: it
  // does not. An error where the rule names layers.
  std::function<std::string(const Options& options, const Layer& layer)> leaves_out;

  // Optional: checks that the rule can be applied to all its layers together.
  std::function<absl::Status(const Options& options, absl::Span<const Layer* const> layers)>
      check_layers;
};

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_ALGORITHMS_ALGORITHM_H_
